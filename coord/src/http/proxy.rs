//! Calls that go through to a node: same path, same query, same body, the caller's own signature.
//! The supervisor checks the caller itself; coord only knows the way.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures_util::StreamExt;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, header};
use rhizome_model::api::{ExecRequest, OutputChunk, TaskView};
use rhizome_model::{AccountId, Code, DeploymentId, Failure, Name, NodeId, Phase};
use rhizome_service::{ApiError, ApiResult};
use serde::Deserialize;

use super::caller::{Caller, SignedBody};
use super::{App, Path, Query, no_deployment, own, too_many_streams};

/// What the supervisor needs to see of the caller's request.
const FORWARDED: [HeaderName; 6] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("signature"),
    HeaderName::from_static("signature-input"),
    HeaderName::from_static("last-event-id"),
    header::ACCEPT,
    header::CONTENT_TYPE,
];

/// Everything else in the query is the supervisor's.
#[derive(Deserialize)]
pub struct OnNode {
    node: Option<NodeId>,
}

/// What a resource printed, as its node sends it. `node` chooses among several.
#[utoipa::path(
    get, path = "/v1/deployments/{account}/{name}/resources/{resource}/logs", tag = "resources",
    params(
        ("account" = u64, Path), ("name" = String, Path), ("resource" = String, Path),
        ("node" = Option<u64>, Query), ("tail" = Option<u64>, Query), ("follow" = Option<bool>, Query)
    ),
    responses(
        (status = 200, body = OutputChunk, content_type = "application/x-ndjson"),
        (status = 404, body = Failure)
    )
)]
pub async fn logs(
    State(app): State<App>,
    caller: Caller,
    Path((account, name, resource)): Path<(AccountId, Name, Name)>,
    Query(query): Query<OnNode>,
    request: Request,
) -> ApiResult<Response> {
    let id = own(&caller, account, name)?;
    app.forward(&id, &resource, query.node, request).await
}

/// Runs a command inside a resource; what it prints, as its node sends it.
#[utoipa::path(
    post, path = "/v1/deployments/{account}/{name}/resources/{resource}/exec", tag = "resources",
    params(
        ("account" = u64, Path), ("name" = String, Path), ("resource" = String, Path),
        ("node" = Option<u64>, Query)
    ),
    request_body = ExecRequest,
    responses(
        (status = 200, body = OutputChunk, content_type = "application/x-ndjson"),
        (status = 404, body = Failure)
    )
)]
pub async fn exec(
    State(app): State<App>,
    caller: Caller,
    Path((account, name, resource)): Path<(AccountId, Name, Name)>,
    Query(query): Query<OnNode>,
    request: Request,
) -> ApiResult<Response> {
    let id = own(&caller, account, name)?;
    app.forward(&id, &resource, query.node, request).await
}

impl App {
    async fn forward(
        &self,
        id: &DeploymentId,
        resource: &Name,
        node: Option<NodeId>,
        request: Request,
    ) -> ApiResult<Response> {
        let node = self.node_with(id, resource, node).await?;
        self.pass_on(node, request).await
    }

    /// The call as it was signed, to a node; and what the node answers.
    pub(super) async fn pass_on(&self, node: NodeId, request: Request) -> ApiResult<Response> {
        let permit = self.streams.clone().try_acquire_owned().map_err(|_| too_many_streams())?;
        let body = request.extensions().get::<SignedBody>().map(|b| b.0.to_vec());
        let mut headers = HeaderMap::new();
        for name in FORWARDED {
            for value in request.headers().get_all(&name) {
                headers.append(name.clone(), value.clone());
            }
        }
        let uri = request.uri();
        let path = uri.path_and_query().map_or(uri.path(), |p| p.as_str());
        let client = &self.nodes.supervisor(node).await?.plain;
        let body = body.unwrap_or_default();
        let reply = client.call(request.method().clone(), path, body, headers, None).await?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = reply.status();
        if let Some(kind) = reply.headers().get(header::CONTENT_TYPE) {
            response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
        }
        let stopped = self.shutdown.token.clone().cancelled_owned();
        let stream = reply.bytes_stream().take_until(stopped).map(move |part| {
            let _held_while_streaming = &permit;
            part
        });
        *response.body_mut() = Body::from_stream(stream);
        Ok(response)
    }

    /// The node that has the resource.
    async fn node_with(
        &self,
        id: &DeploymentId,
        resource: &Name,
        asked: Option<NodeId>,
    ) -> ApiResult<NodeId> {
        let view = self.store.deployment(id).await.map_err(Failure::from)?;
        let mut tasks = view.ok_or_else(|| no_deployment(id))?.tasks;
        tasks.retain(|t| t.phase != Phase::Deleted && asked.is_none_or(|n| n == t.node));
        if let (Some(node), true) = (asked, tasks.is_empty()) {
            return Err(ApiError::not_found(format_args!("deployment {id} on node {node}")));
        }
        if let [only] = tasks.as_slice() {
            return Ok(only.node);
        }
        let tasks = join_all(tasks.into_iter().map(|task| self.freshened(task))).await;
        let has = |t: &&TaskView| t.resources.iter().any(|r| r.resource.name == *resource);
        let nodes: Vec<_> = tasks.iter().filter(has).map(|t| t.node).collect();
        match nodes.as_slice() {
            [] => Err(ApiError::not_found(format_args!("resource {id}/{resource}"))),
            [only] => Ok(*only),
            several => {
                let names: Vec<_> = several.iter().map(NodeId::to_string).collect();
                let message = format!(
                    "{id}/{resource} is on the nodes {}; choose one with ?node={}",
                    names.join(", "),
                    several[0]
                );
                Err(ApiError::new(Code::BadRequest, message))
            }
        }
    }
}
