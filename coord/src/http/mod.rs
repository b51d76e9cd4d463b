//! coord's HTTP face.
//!
//! `POST /v1/envelopes` authenticates itself by what it carries. Everything else needs an RFC 9421
//! signature by an account's key, and shows an account its own deployments only: of others' it does
//! not even say that they exist.

mod caller;
mod deployments;
mod envelopes;
mod events;
mod nodes;
mod operate;
mod operations;
mod proxy;

use std::ops::Deref;
use std::sync::Arc;

use axum::middleware::from_fn_with_state;
use rhizome_identity::{Statements, http_signature::Verifier};
use rhizome_model::{AccountId, DeploymentId, Failure, Name, NodeId};
use rhizome_service::{ApiError, ApiResult, Shutdown};
use tokio::sync::Semaphore;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts::KnownAccounts;
use crate::dispatch::Dispatcher;
use crate::nodes::Nodes;
use crate::store::Store;

/// Submissions that are checked at a time; more wait.
const SUBMISSIONS_AT_ONCE: usize = 64;
/// Streams of events, logs and commands at a time; more are turned away.
const MAX_STREAMS: usize = 4096;

#[derive(Clone)]
pub struct App(Arc<Parts>);

pub struct Parts {
    store: Arc<Store>,
    nodes: Arc<Nodes>,
    dispatcher: Dispatcher,
    /// What the ledger says: for envelopes.
    statements: Arc<Statements>,
    /// For reads.
    known: Arc<KnownAccounts>,
    verifier: Verifier,
    network: String,
    shutdown: Shutdown,
    submissions: Semaphore,
    streams: Arc<Semaphore>,
}

impl App {
    pub fn new(
        store: Arc<Store>,
        nodes: Arc<Nodes>,
        dispatcher: Dispatcher,
        statements: Arc<Statements>,
        known: Arc<KnownAccounts>,
        network: String,
        shutdown: Shutdown,
    ) -> Self {
        Self(Arc::new(Parts {
            store,
            nodes,
            dispatcher,
            statements,
            known,
            verifier: Verifier::new(),
            network,
            shutdown,
            submissions: Semaphore::new(SUBMISSIONS_AT_ONCE),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        }))
    }
}

impl Deref for App {
    type Target = Parts;
    fn deref(&self) -> &Parts {
        &self.0
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Rhizome coord",
        description = "Takes signed deployments, brings them to their nodes, follows them to their end."
    ),
    components(schemas(Failure, rhizome_model::Event))
)]
struct Description;

pub fn routes(app: App) -> (axum::Router, utoipa::openapi::OpenApi) {
    let (signed, signed_api) = OpenApiRouter::new()
        .routes(routes!(deployments::list))
        .routes(routes!(deployments::show))
        .routes(routes!(events::events))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show))
        .routes(routes!(nodes::status))
        .routes(routes!(nodes::place))
        .routes(routes!(nodes::account))
        .routes(routes!(proxy::logs))
        .routes(routes!(proxy::exec))
        .routes(routes!(operate::plan_base))
        .routes(routes!(operate::queues))
        .routes(routes!(operate::dead))
        .routes(routes!(operate::job))
        .routes(routes!(operate::cancel_job))
        .routes(routes!(operate::job_again))
        .routes(routes!(operate::runners))
        .routes(routes!(operate::change_runners))
        .routes(routes!(operate::limits))
        .routes(routes!(operate::set_limits))
        .split_for_parts();
    let signed = signed.route_layer(from_fn_with_state(app.clone(), caller::authenticate));
    let (open, mut api) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(envelopes::submit))
        .split_for_parts();
    api.merge(signed_api);
    api.info.version = env!("CARGO_PKG_VERSION").into();
    (open.merge(signed).with_state(app), api)
}

/// A path whose parts are ids; what is none is a request that makes no sense.
#[derive(axum::extract::FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
struct Path<T>(T);

#[derive(axum::extract::FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
struct Query<T>(T);

#[derive(axum::extract::FromRequest)]
#[from_request(via(axum::Json), rejection(ApiError))]
struct Json<T>(T);

/// The deployment of a path, if it is the caller's.
fn own(caller: &caller::Caller, account: AccountId, name: Name) -> ApiResult<DeploymentId> {
    let id = DeploymentId { account, name };
    if caller.account.id == account { Ok(id) } else { Err(no_deployment(&id)) }
}

fn no_deployment(id: &DeploymentId) -> ApiError {
    ApiError::not_found(format_args!("deployment {id}"))
}

fn no_node(id: NodeId) -> ApiError {
    ApiError::not_found(format_args!("node {id}"))
}

fn too_many_streams() -> ApiError {
    ApiError::new(
        rhizome_model::Code::Unavailable,
        format!("{MAX_STREAMS} streams are open already; try again later"),
    )
}
