//! The node's HTTP face.
//!
//! What is about this node's jobs and runners is served twice: as `/v1/…`, and as
//! `/v1/nodes/{node}/…` with the node's own id. A coordinator passes calls of the second form on as
//! they were signed: so the node checks who asks itself, and what was signed for one node counts on
//! no other.

mod compare;
mod jobs;
mod operate;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use rhizome_model::api::{ExecRequest, NodeStatus, OutputChunk, TaskView};
use rhizome_model::{
    AccountId, Action, Code, DeploymentId, Failure, Job, JobId, Name, NodeId, Priority, ResourceId,
    Task, Work, WorkloadKind, queue_name,
};
use rhizome_queue::QueueError;
use rhizome_service::{ApiError, ApiResult};
use serde::Deserialize;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::audit::Entry;
use crate::caller::{Caller, Signed};
use crate::intake::Taken;
use crate::{Supervisor, view};

/// A log that is followed, or a command that runs, ends after this long at the latest.
const ACTION_MS: u64 = 24 * 3600 * 1000;
const MAX_TAIL: usize = 100_000;

#[derive(OpenApi)]
#[openapi(info(
    title = "Rhizome supervisor",
    description = "One node: tasks, events, capacity, queues."
))]
struct Description;

pub fn routes(supervisor: Arc<Supervisor>) -> (axum::Router, utoipa::openapi::OpenApi) {
    let (router, mut api) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(submit))
        .routes(routes!(node))
        .routes(routes!(tasks))
        .routes(routes!(task))
        .routes(routes!(compare::base))
        .routes(routes!(events))
        .routes(routes!(logs))
        .routes(routes!(exec))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::again))
        .routes(routes!(jobs::dead))
        .routes(routes!(operate::queues))
        .routes(routes!(operate::runners))
        .routes(routes!(operate::change_runners))
        .routes(routes!(operate::limits))
        .routes(routes!(operate::set_limits))
        .split_for_parts();
    api.info.version = env!("CARGO_PKG_VERSION").into();
    let router = router.merge(through_a_coordinator(&supervisor));
    (router.with_state(supervisor), api)
}

/// The same, as a coordinator passes them on.
fn through_a_coordinator(supervisor: &Arc<Supervisor>) -> axum::Router<Arc<Supervisor>> {
    use axum::routing::{get, post, put};
    axum::Router::new()
        .route("/v1/nodes/{node}/tasks/{account}/{name}/base", get(compare::base))
        .route("/v1/nodes/{node}/jobs/{id}", get(jobs::show))
        .route("/v1/nodes/{node}/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/nodes/{node}/jobs/{id}/again", post(jobs::again))
        .route("/v1/nodes/{node}/queues", get(operate::queues))
        .route("/v1/nodes/{node}/queues/{queue}/dead", get(jobs::dead))
        .route("/v1/nodes/{node}/runners", get(operate::runners))
        .route("/v1/nodes/{node}/runners/{queue}", post(operate::change_runners))
        .route("/v1/nodes/{node}/limits", get(operate::limits))
        .route("/v1/nodes/{node}/limits/{account}", put(operate::set_limits))
        .route_layer(from_fn_with_state(supervisor.clone(), only_ours))
}

#[derive(Deserialize)]
struct AtNode {
    node: NodeId,
}

async fn only_ours(
    State(supervisor): State<Arc<Supervisor>>,
    Path(AtNode { node }): Path<AtNode>,
    request: Request,
    next: Next,
) -> ApiResult<Response> {
    let own = supervisor.facts.id;
    if node != own {
        return Err(ApiError::new(Code::WrongNode, format!("this is node {own}, not {node}")));
    }
    Ok(next.run(request).await)
}

/// Takes a signed envelope. It authenticates itself; the same one again is answered with its task,
/// an operation with its job.
#[utoipa::path(post, path = "/v1/envelopes", request_body = String, responses((status = 202, body = inline(Taken))))]
async fn submit(State(supervisor): State<Arc<Supervisor>>, body: Bytes) -> ApiResult<Response> {
    let taken = supervisor.take(&body).await?;
    Ok((http::StatusCode::ACCEPTED, Json(taken)).into_response())
}

/// Facts, capacity and pools.
#[utoipa::path(get, path = "/v1/node", responses((status = 200, body = NodeStatus)))]
async fn node(State(supervisor): State<Arc<Supervisor>>, _: Signed) -> ApiResult<Json<NodeStatus>> {
    Ok(Json(NodeStatus {
        facts: supervisor.facts.clone(),
        key: supervisor.key,
        usage: supervisor.usage().await?,
        pools: supervisor.pools.view(),
        network: supervisor.joined.view(),
    }))
}

/// The caller's tasks; a coordinator's are all.
#[utoipa::path(get, path = "/v1/tasks", responses((status = 200, body = [TaskView])))]
async fn tasks(
    State(supervisor): State<Arc<Supervisor>>,
    signed: Signed,
) -> ApiResult<Json<Vec<TaskView>>> {
    let mut views = Vec::new();
    for task in supervisor.queue.tasks().await.map_err(Failure::from)? {
        if signed.caller.may_see(&task.deployment).is_ok() {
            views.push(supervisor.view(&task).await?);
        }
    }
    Ok(Json(views))
}

/// One task.
#[utoipa::path(get, path = "/v1/tasks/{account}/{name}", params(("account" = u64, Path), ("name" = String, Path)), responses((status = 200, body = TaskView)))]
async fn task(
    State(supervisor): State<Arc<Supervisor>>,
    Path((account, name)): Path<(AccountId, Name)>,
    signed: Signed,
) -> ApiResult<Json<TaskView>> {
    let deployment = DeploymentId { account, name };
    let task = supervisor.visible(signed.caller, &deployment).await?;
    Ok(Json(supervisor.view(&task).await?))
}

#[derive(Deserialize)]
struct After {
    after: Option<String>,
}

/// Server-sent events of all tasks, for coordinators: `id` resumes, `data` is an `Event`. An event
/// named `trimmed` comes first when the id asked for is older than what is kept.
#[utoipa::path(get, path = "/v1/events", params(("after" = Option<String>, Query)), responses((status = 200, body = String, content_type = "text/event-stream")))]
async fn events(
    State(supervisor): State<Arc<Supervisor>>,
    Query(query): Query<After>,
    headers: http::HeaderMap,
    signed: Signed,
) -> ApiResult<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>> {
    if signed.caller != Caller::Coordinator {
        return Err(ApiError::new(Code::Unauthorised, "only a coordinator follows a whole node"));
    }
    let resumed = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let stream = supervisor.queue.follow(resumed.or(query.after));
    let stream = stream.filter_map(async |item| match item {
        Ok((id, event)) => SseEvent::default().id(id).json_data(&event).ok(),
        Err(QueueError::Trimmed) => Some(SseEvent::default().event("trimmed").data("{}")),
        Err(error) => {
            tracing::warn!(%error, "a follower of events waits");
            None
        }
    });
    let stream = stream.map(Ok).take_until(supervisor.stop.clone().cancelled_owned());
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

#[derive(Deserialize)]
struct LogQuery {
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
}

/// What a resource printed: one `OutputChunk` per line.
#[utoipa::path(get, path = "/v1/deployments/{account}/{name}/resources/{resource}/logs", params(("account" = u64, Path), ("name" = String, Path), ("resource" = String, Path), ("tail" = Option<usize>, Query), ("follow" = Option<bool>, Query)), responses((status = 200, body = OutputChunk, content_type = "application/x-ndjson")))]
async fn logs(
    State(supervisor): State<Arc<Supervisor>>,
    Path((account, name, resource)): Path<(AccountId, Name, Name)>,
    Query(query): Query<LogQuery>,
    signed: Signed,
) -> ApiResult<Response> {
    let id = ResourceId { account, deployment: name, name: resource };
    let tail = query.tail.unwrap_or(MAX_TAIL).min(MAX_TAIL);
    supervisor.act(signed.caller, id, Action::Logs { tail, follow: query.follow }).await
}

/// Runs a command inside a resource: one `OutputChunk` per line, the last one with its exit code.
#[utoipa::path(post, path = "/v1/deployments/{account}/{name}/resources/{resource}/exec", request_body = ExecRequest, params(("account" = u64, Path), ("name" = String, Path), ("resource" = String, Path)), responses((status = 200, body = OutputChunk, content_type = "application/x-ndjson")))]
async fn exec(
    State(supervisor): State<Arc<Supervisor>>,
    Path((account, name, resource)): Path<(AccountId, Name, Name)>,
    signed: Signed,
) -> ApiResult<Response> {
    let request: ExecRequest = serde_json::from_slice(&signed.body)
        .map_err(|e| ApiError::new(Code::BadRequest, format!("the request's body: {e}")))?;
    if request.command.is_empty() {
        return Err(ApiError::new(Code::BadRequest, "command: a program and its arguments"));
    }
    let id = ResourceId { account, deployment: name, name: resource };
    let deployment = id.deployment_id();
    let action = Action::Exec { command: request.command };
    let result = supervisor.act(signed.caller, id, action).await;
    supervisor.note(&Entry {
        deployment: Some(&deployment),
        signers: &[signed.key],
        what: "exec",
        refused: result.as_ref().err().map(|e| e.0.code),
        ..Entry::default()
    });
    result
}

impl Supervisor {
    async fn view(&self, task: &Task) -> Result<TaskView, Failure> {
        let statuses = self.queue.statuses(&task.deployment).await?;
        Ok(view::task(task, self.facts.id, &statuses))
    }

    async fn visible(&self, caller: Caller, deployment: &DeploymentId) -> ApiResult<Task> {
        caller.may_see(deployment)?;
        let task = self.queue.task(deployment).await.map_err(Failure::from)?;
        task.ok_or_else(|| {
            ApiError::not_found(format_args!("deployment {deployment} on this node"))
        })
    }

    /// Does something with a resource by way of a job, and streams what it prints. When nobody
    /// reads any more, the job is cancelled.
    async fn act(&self, caller: Caller, id: ResourceId, action: Action) -> ApiResult<Response> {
        let deployment = id.deployment_id();
        caller.may_use(&deployment)?;
        let task = self.visible(caller, &deployment).await?;
        let held = task.held();
        let resource = held.iter().find(|r| r.name == id.name);
        let kind = resource.ok_or_else(|| ApiError::not_found(format_args!("resource {id}")))?.kind;
        let job = action_job(&task, kind, id, action);
        let job_id = job.id;
        self.queue.submit(&[job]).await.map_err(Failure::from)?;
        let cancel = CancelOnDrop { queue: self.queue.clone(), job: Some(job_id) };
        let output = self.queue.output(job_id).take_until(self.stop.clone().cancelled_owned());
        let lines = output.map(move |item| {
            let _kept_while_read = &cancel;
            let chunk = item.unwrap_or_else(|e| OutputChunk::Failed { failure: e.into() });
            serde_json::to_vec(&chunk).map(|mut line| {
                line.push(b'\n');
                line
            })
        });
        let kind = [(http::header::CONTENT_TYPE, "application/x-ndjson")];
        Ok((kind, Body::from_stream(lines)).into_response())
    }
}

fn action_job(task: &Task, kind: WorkloadKind, id: ResourceId, action: Action) -> Job {
    let resource = id.name.clone();
    let work = Work::Act { kind, id, action };
    let id = JobId(*uuid::Uuid::new_v4().as_bytes());
    Job {
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        resource: Some(resource),
        priority: Priority::High,
        // A command is never run twice by itself.
        max_attempts: 1,
        timeout_ms: ACTION_MS,
        trace: view::trace(task),
        ..Job::new(id, queue_name(&work), task.deployment.account, work)
    }
}

/// Cancels an action when its reader is gone; one that has ended takes no notice.
struct CancelOnDrop {
    queue: rhizome_queue::Queue,
    job: Option<JobId>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some(job) = self.job.take() else { return };
        let queue = self.queue.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = queue.cancel(job).await {
                    tracing::warn!(%job, %error, "cannot cancel an action that nobody reads");
                }
            });
        }
    }
}
