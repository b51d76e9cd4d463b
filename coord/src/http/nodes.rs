//! Nodes, what they have free, and accounts.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use rhizome_model::api::{AccountView, NodeStatus, NodeView, PlacementReply, PlacementRequest};
use rhizome_model::statement::Allowance;
use rhizome_model::{AccountId, Code, Failure, FarmId, KeyId, NodeId};
use rhizome_service::{ApiResult, clock};
use serde::de::DeserializeOwned;

use super::caller::{Caller, Signer};
use super::{App, Json, Path, no_node};
use crate::rules;

/// All nodes, and how each of them is.
#[utoipa::path(
    get, path = "/v1/nodes", tag = "nodes", responses((status = 200, body = Vec<NodeView>))
)]
pub async fn list(State(app): State<App>, _: Caller) -> ApiResult<axum::Json<Vec<NodeView>>> {
    Ok(axum::Json(app.nodes.views().await?))
}

/// One node.
#[utoipa::path(
    get, path = "/v1/nodes/{id}", tag = "nodes", params(("id" = u64, Path)),
    responses((status = 200, body = NodeView), (status = 404, body = Failure))
)]
pub async fn show(
    State(app): State<App>,
    _: Caller,
    Path(id): Path<NodeId>,
) -> ApiResult<axum::Json<NodeView>> {
    let node = app.nodes.find(id).await?.ok_or_else(|| no_node(id))?;
    Ok(axum::Json(app.nodes.view(&node).await))
}

/// A node as it sees itself.
#[utoipa::path(
    get, path = "/v1/nodes/{id}/status", tag = "nodes", params(("id" = u64, Path)),
    responses((status = 200, body = NodeStatus), (status = 404, body = Failure), (status = 503, body = Failure))
)]
pub async fn status(
    State(app): State<App>,
    _: Caller,
    Path(id): Path<NodeId>,
) -> ApiResult<axum::Json<NodeStatus>> {
    app.ask_node(id, "/v1/node").await
}

/// Nodes for a deployment that is about to be signed: those with the most free memory.
#[utoipa::path(
    post, path = "/v1/placements", tag = "nodes", request_body = PlacementRequest,
    responses((status = 200, body = PlacementReply), (status = 409, body = Failure))
)]
pub async fn place(
    State(app): State<App>,
    caller: Caller,
    Json(request): Json<PlacementRequest>,
) -> ApiResult<axum::Json<PlacementReply>> {
    let mut nodes = app.nodes.views().await?;
    for node in nodes.iter_mut().filter(|n| n.problem.is_none()) {
        node.problem = app.closed_to(node.id, node.farm, caller.account.id).await;
    }
    let nodes = rules::place(nodes, request.count)?;
    Ok(axum::Json(PlacementReply { nodes }))
}

/// The account of a key. Any key may ask: who has no account yet learns so here.
#[utoipa::path(
    get, path = "/v1/accounts/{key}", tag = "accounts", params(("key" = String, Path)),
    responses((status = 200, body = AccountView), (status = 404, body = Failure))
)]
pub async fn account(
    State(app): State<App>,
    _: axum::Extension<Signer>,
    Path(key): Path<KeyId>,
) -> ApiResult<Response> {
    if let Some(account) = app.known.by_key(&key).await? {
        return Ok(axum::Json(account).into_response());
    }
    let message = format!("no account has the key {key}; register it with the ledger first");
    let failure = Failure::new(Code::UnknownAccount, message);
    Ok((StatusCode::NOT_FOUND, axum::Json(failure)).into_response())
}

impl App {
    /// Why a node is not chosen for an account, by what the ledger has signed. What is not known
    /// now is the node's to judge.
    async fn closed_to(&self, node: NodeId, farm: FarmId, account: AccountId) -> Option<String> {
        let approved = self.statements.node(node).await.ok().flatten().is_none_or(|n| n.approved);
        if !approved {
            return Some(format!("the owner of farm {farm} has not approved of it"));
        }
        self.check_grant(node, farm, account).await.err().map(|failure| failure.message)
    }

    /// Refuses what the node would refuse: its farm is closed to the account.
    pub(super) async fn check_grant(
        &self,
        node: NodeId,
        farm: FarmId,
        account: AccountId,
    ) -> Result<(), Failure> {
        let known = self.statements.farm(farm).await.ok().flatten();
        let allowance = known.map(|f| f.allowance(node, account, clock::now_secs()));
        if allowance == Some(Allowance::Nothing) {
            let message = format!(
                "farm {farm} is closed, and account {account} has no grant for node {node}; its \
                 owner can give one with `rhizome grant`"
            );
            return Err(Failure::new(Code::NotGranted, message));
        }
        Ok(())
    }

    async fn ask_node<T: DeserializeOwned>(
        &self,
        id: NodeId,
        path: &str,
    ) -> ApiResult<axum::Json<T>> {
        self.nodes.find(id).await?.ok_or_else(|| no_node(id))?;
        Ok(axum::Json(self.nodes.supervisor(id).await?.ours.get(path).await?))
    }
}
