//! Deployments as coord holds them, with what their nodes say right now.

use std::time::Duration;

use axum::extract::State;
use futures_util::future::join_all;
use rhizome_model::api::{DeploymentView, TaskView};
use rhizome_model::{AccountId, Failure, Name, Phase};
use rhizome_service::ApiResult;
use serde::Deserialize;

use super::caller::Caller;
use super::{App, Path, Query, no_deployment, own};

/// A node that takes longer is shown as it was when it was seen last.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Those that are deleted too.
    #[serde(default)]
    all: bool,
}

/// The caller's deployments.
#[utoipa::path(
    get, path = "/v1/deployments", tag = "deployments", params(ListQuery),
    responses((status = 200, body = Vec<DeploymentView>))
)]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> ApiResult<axum::Json<Vec<DeploymentView>>> {
    let views = app.store.deployments(caller.account.id, query.all).await.map_err(Failure::from)?;
    Ok(axum::Json(views))
}

/// One of the caller's deployments; a deleted one too.
#[utoipa::path(
    get, path = "/v1/deployments/{account}/{name}", tag = "deployments",
    params(("account" = u64, Path), ("name" = String, Path)),
    responses((status = 200, body = DeploymentView), (status = 404, body = Failure))
)]
pub async fn show(
    State(app): State<App>,
    caller: Caller,
    Path((account, name)): Path<(AccountId, Name)>,
) -> ApiResult<axum::Json<DeploymentView>> {
    let id = own(&caller, account, name)?;
    let view = app.store.deployment(&id).await.map_err(Failure::from)?;
    let mut view = view.ok_or_else(|| no_deployment(&id))?;
    let tasks = std::mem::take(&mut view.tasks);
    view.tasks = join_all(tasks.into_iter().map(|task| app.freshened(task))).await;
    Ok(axum::Json(view))
}

impl App {
    /// The task with its resources as the node has them now. Its phase stays what the events said.
    pub(super) async fn freshened(&self, mut task: TaskView) -> TaskView {
        let at_node = !matches!(task.phase, Phase::Pending | Phase::Refused | Phase::Deleted);
        if let Some(now) = if at_node { self.at_node(&task).await } else { None }
            && (now.node, now.version) == (task.node, task.version)
        {
            task.resources = now.resources;
            task.reserved = now.reserved;
            task.waiting_for = task.waiting_for.or(now.waiting_for);
        }
        task
    }

    async fn at_node(&self, task: &TaskView) -> Option<TaskView> {
        let path = format!("/v1/tasks/{}", task.deployment);
        let ask = async {
            let supervisor = self.nodes.supervisor(task.node).await.ok()?;
            supervisor.ours.get::<TaskView>(&path).await.ok()
        };
        tokio::time::timeout(ANSWER_WITHIN, ask).await.ok().flatten()
    }
}
