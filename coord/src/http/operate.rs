//! A node's jobs, queues, pools and limits. coord only knows the way: the node itself sees who asks,
//! and knows the jobs of an account and the owner of its farm.

use axum::extract::{Request, State};
use axum::response::Response;
use rhizome_model::api::{
    AccountLimits, JobAgain, JobView, PlanBase, PoolChange, PoolView, QueueView,
};
use rhizome_model::{Failure, JobId, NodeId};
use rhizome_service::ApiResult;
use serde::Deserialize;

use super::caller::Caller;
use super::{App, Path, no_node};

/// What else a path names is the node's.
#[derive(Deserialize)]
pub struct OnNode {
    id: NodeId,
}

/// Defines handlers that pass a call on as it was signed.
macro_rules! passed_on {
    ($($(#[$doc:meta])* $name:ident: $method:ident $path:literal ($($param:literal: $kind:ty),*)
        $($request:ty)? => $answer:ty;)*) => {$(
        $(#[$doc])*
        #[utoipa::path(
            $method, path = $path, tag = "operations", $(request_body = $request,)?
            params($(($param = $kind, Path)),*),
            responses(
                (status = 200, body = $answer), (status = 403, body = Failure),
                (status = 404, body = Failure), (status = 503, body = Failure)
            )
        )]
        pub async fn $name(
            State(app): State<App>,
            _: Caller,
            Path(OnNode { id }): Path<OnNode>,
            request: Request,
        ) -> ApiResult<Response> {
            app.nodes.find(id).await?.ok_or_else(|| no_node(id))?;
            app.pass_on(id, request).await
        }
    )*};
}

passed_on! {
    /// What a node has of one of the caller's deployments, for a plan to be compared with.
    plan_base: get "/v1/nodes/{id}/tasks/{account}/{name}/base" ("id": u64, "account": u64, "name": String) => PlanBase;
    /// The queues of a node, for the owner of its farm.
    queues: get "/v1/nodes/{id}/queues" ("id": u64) => Vec<QueueView>;
    /// The dead letters of a queue, oldest first; an account sees its own.
    dead: get "/v1/nodes/{id}/queues/{queue}/dead" ("id": u64, "queue": String) => Vec<JobId>;
    /// A job with every attempt at it. An account sees its own, the owner of the farm all.
    job: get "/v1/nodes/{id}/jobs/{job}" ("id": u64, "job": String) => JobView;
    /// Cancels a job.
    cancel_job: post "/v1/nodes/{id}/jobs/{job}/cancel" ("id": u64, "job": String) => JobView;
    /// Does a job that has ended again.
    job_again: post "/v1/nodes/{id}/jobs/{job}/again" ("id": u64, "job": String) => JobAgain;
    /// The pools of a node, for the owner of its farm.
    runners: get "/v1/nodes/{id}/runners" ("id": u64) => Vec<PoolView>;
    /// Changes the pool that serves a queue.
    change_runners: post "/v1/nodes/{id}/runners/{queue}" ("id": u64, "queue": String) PoolChange => PoolView;
    /// What accounts may use of a node's runners, by account; `default` are those of all others.
    limits: get "/v1/nodes/{id}/limits" ("id": u64) => std::collections::BTreeMap<String, AccountLimits>;
    /// Sets what an account may use, or with `default` all others.
    set_limits: put "/v1/nodes/{id}/limits/{account}" ("id": u64, "account": String) AccountLimits => AccountLimits;
}
