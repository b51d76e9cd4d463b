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
mod backup;
mod db;
mod error;
mod farms;
mod nodes;
mod request;
mod scheme;
mod time;
mod uptime;
mod v2;
mod zos;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, Method, Uri, header};
use axum::routing::{get, patch, post};
pub use backup::{backup, restore};
pub use rhizome_database::DatabaseUrl;
use rhizome_identity::SigningKey;
use rhizome_identity::http_signature::Verifier;
use rhizome_model::{AccountId, Code, Failure};
use rhizome_service::{ApiError, Health};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::cors::{Any, CorsLayer};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::Db;
pub use crate::db::audit::Verdict as AuditVerdict;
use crate::request::TOTAL_COUNT;
use crate::uptime::KnownKeys;

/// How often the database is asked whether it answers.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// A SQLite file, made where there is none, or a PostgreSQL, which several ledgers may share.
    pub database: DatabaseUrl,
    /// `dev`, `test` or `main`. A database belongs to one network for ever.
    pub network: String,
    /// Who may set the version of Zero-OS.
    pub admin: AccountId,
    /// The file with the key that signs statements; made where there is none.
    pub signing_key: PathBuf,
    /// How long a statement counts, and so how long nodes do without us.
    pub statement_lifetime: Duration,
}

/// As with v4: who came first.
pub const ADMIN: AccountId = AccountId(1);

/// A day: long enough for a failure over a night.
pub const STATEMENT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Walks through the audit log of a database. `kept` is a number and the hash that this row had.
pub async fn verify_audit(
    database: &DatabaseUrl,
    kept: Option<(u64, String)>,
) -> Result<AuditVerdict, Failure> {
    if let DatabaseUrl::Sqlite(path) = database
        && !path.exists()
    {
        let message = format!("there is no database {}", path.display());
        return Err(Failure::new(Code::NotFound, message));
    }
    db::verify_audit(database, kept).await.map_err(|e| {
        let message = format!("cannot read the audit log of {database}: {e}");
        Failure::new(Code::StateNotWritable, message)
    })
}

struct App {
    db: Db,
    network: String,
    admin: AccountId,
    /// Signs statements.
    key: SigningKey,
    lifetime_secs: i64,
    keys: KnownKeys,
    verifier: Verifier,
}

/// Serves until the token is cancelled; requests under way are finished.
pub async fn run(
    config: LedgerConfig,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let db = Db::open(&config.database, &config.network).await?;
    tracing::info!(database = %config.database, network = config.network, "the ledger is open");
    let key = SigningKey::load_or_new(&config.signing_key)
        .map_err(|e| Failure::new(Code::StateNotWritable, e.to_string()))?;
    db.signs_with(&key.key_id()).await?;
    tracing::info!(key = %key.key_id(), "statements are signed with this key");
    let app = Arc::new(App {
        db: db.clone(),
        network: config.network,
        admin: config.admin,
        key,
        lifetime_secs: i64::try_from(config.statement_lifetime.as_secs()).unwrap_or(i64::MAX),
        keys: KnownKeys::default(),
        verifier: Verifier::new(),
    });
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
    let (documented, api) = described
        .nest("/v1", resources())
        .nest("/v2", uptime::routes().merge(v2::resources()))
        .split_for_parts();
    let (again, _) = OpenApiRouter::new().nest("/api/v1", resources()).split_for_parts();
    // v4 asks browsers' origins nothing; its X-Auth is no cookie.
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::PUT, Method::DELETE])
        .allow_headers([header::CONTENT_TYPE, HeaderName::from_static("x-auth")])
        .expose_headers([TOTAL_COUNT]);
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
        .routes(routes!(uptime::report))
        .routes(routes!(zos::get, zos::set))
        // With a slash behind them v4 serves some and redirects the others to where they are.
        .route("/accounts/", get(accounts::get).post(accounts::create))
        .route("/accounts/{twin_id}/", patch(accounts::update))
        .route("/farms/", get(farms::list).post(farms::create))
        .route("/farms/{farm_id}/", get(farms::get).patch(farms::update))
        .route("/nodes/", get(nodes::list).post(nodes::create))
        .route("/nodes/{node_id}/", get(nodes::get).patch(nodes::update))
        .route("/nodes/{node_id}/uptime/", post(uptime::report))
        .route("/zos/version/", get(zos::get).put(zos::set))
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
