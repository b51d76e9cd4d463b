//! The ledger: accounts, farms, nodes and their uptime, on the registrar's v4 routes.
//!
//! ```text
//!   /v1, /api/v1 ─▶ X-Auth ─▶ accounts | farms | nodes ─▶ db ─▶ SQLite | PostgreSQL
//! ```
//!
//! Clients of the registrar v4 work unchanged: paths, statuses and texts are its own. Stricter than
//! v4: duplicates are 409, challenges from the future are refused, lists are ordered and bounded,
//! keys that anybody can sign for get no account. One file per resource; SQL stands in `db` only.
//!
//! Must not know: deployments, envelopes, what a node runs.

mod accounts;
mod auth;
mod db;
mod error;
mod farms;
mod nodes;
mod request;
mod time;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, Method, Uri, header};
use axum::routing::get;
pub use rhizome_database::DatabaseUrl;
use rhizome_model::{Code, Failure};
use rhizome_service::{ApiError, Health};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::cors::{Any, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::Db;

/// How often the database is asked whether it answers.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// A SQLite file, made where there is none, or a PostgreSQL, which several ledgers may share.
    pub database: DatabaseUrl,
    /// `dev`, `test` or `main`. A database belongs to one network for ever.
    pub network: String,
}

struct App {
    db: Db,
}

/// Serves until the token is cancelled; requests under way are finished.
pub async fn run(
    config: LedgerConfig,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let db = Db::open(&config.database, &config.network).await?;
    tracing::info!(database = %config.database, network = config.network, "the ledger is open");
    let app = Arc::new(App { db: db.clone() });
    let (router, api) = router(app);
    let (health, probing) = watch(db.clone(), shutdown.clone());
    let served = rhizome_service::serve(listener, router, api, health, shutdown.clone()).await;
    shutdown.cancel();
    probing.await;
    db.close().await;
    served.map_err(|e| Failure::new(Code::Internal, format!("the ledger stopped serving: {e}")))
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Rhizome ledger",
    description = "Accounts, farms, nodes and their uptime, on the routes of registrar v4."
))]
struct Description;

fn router(app: Arc<App>) -> (Router, utoipa::openapi::OpenApi) {
    let described = OpenApiRouter::with_openapi(Description::openapi());
    let (documented, api) = described.nest("/v1", resources()).split_for_parts();
    let (again, _) = OpenApiRouter::new().nest("/api/v1", resources()).split_for_parts();
    // v4 asks browsers' origins nothing; its X-Auth is no cookie.
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::PUT, Method::DELETE])
        .allow_headers([header::CONTENT_TYPE, HeaderName::from_static("x-auth")]);
    let router = documented.merge(again).method_not_allowed_fallback(no_such_method);
    (router.layer(cors).with_state(app), api)
}

/// Set here, below the CORS layer: a browser's preflight asks with a method that no route has.
async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        Code::NoSuchRoute,
        format!("there is no {method} {}; /openapi.json lists what there is", uri.path()),
    )
}

fn resources() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(accounts::create, accounts::get))
        .routes(routes!(accounts::update))
        .routes(routes!(farms::create, farms::list))
        .routes(routes!(farms::get, farms::update))
        .routes(routes!(nodes::create, nodes::list))
        .routes(routes!(nodes::get, nodes::update))
        .routes(routes!(nodes::report_uptime))
        // The two that v4 serves with a slash behind them as well.
        .route("/accounts/", get(accounts::get).post(accounts::create))
        .route("/farms/", get(farms::list).post(farms::create))
}

/// Looks after the database: what `/healthz` says, and the task that finds it out.
fn watch(db: Db, shutdown: CancellationToken) -> (Health, impl Future<Output = ()>) {
    let problem = Arc::new(Mutex::new(None::<String>));
    let read = problem.clone();
    let health: Health = Arc::new(move || {
        read.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    });
    let probing = tokio::spawn(async move {
        loop {
            let failed =
                db.probe().await.err().map(|e| format!("the database does not answer: {e}"));
            *problem.lock().unwrap_or_else(PoisonError::into_inner) = failed;
            tokio::select! {
                () = tokio::time::sleep(PROBE_INTERVAL) => {}
                () = shutdown.cancelled() => return,
            }
        }
    });
    (health, async move {
        if let Err(error) = probing.await {
            tracing::error!(%error, "the task that watches the database ended badly");
        }
    })
}
