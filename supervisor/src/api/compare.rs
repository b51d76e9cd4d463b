//! What a plan is compared with.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use rhizome_model::api::PlanBase;
use rhizome_model::{AccountId, DeploymentId, Name};
use rhizome_service::ApiResult;
use serde::Deserialize;

use crate::Supervisor;
use crate::caller::Signed;

#[derive(Deserialize)]
pub struct OfTask {
    account: AccountId,
    name: Name,
}

/// What the node has of a deployment and what it has room for, be the deployment here or not.
#[utoipa::path(get, path = "/v1/tasks/{account}/{name}/base", params(("account" = u64, Path), ("name" = String, Path)), responses((status = 200, body = PlanBase)))]
pub async fn base(
    State(supervisor): State<Arc<Supervisor>>,
    Path(OfTask { account, name }): Path<OfTask>,
    signed: Signed,
) -> ApiResult<Json<PlanBase>> {
    let deployment = DeploymentId { account, name };
    signed.caller.may_see(&deployment)?;
    Ok(Json(supervisor.plan_base(&deployment).await?))
}
