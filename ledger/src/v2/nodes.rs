//! Nodes: what they have free, how they are, whether their farm's owner has approved of them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use rhizome_model::api::{LedgerNodeView, NodeReport};
use rhizome_model::statement::Subject;
use rhizome_model::{Code, Failure, NodeId};
use rhizome_service::clock;
use serde::{Deserialize, Serialize};

use super::change::{Change, Signed};
use super::{Path, Query, Refusal, Reply, in_range, page, read};
use crate::App;
use crate::db::{self, StatusFilter, access};

/// What a node may say about why it cannot deploy.
const MAX_REASONS: usize = 16;
const MAX_REASON: usize = 500;

#[derive(Deserialize)]
pub struct Which {
    farm: Option<u64>,
    approved: Option<bool>,
    page: Option<u64>,
    size: Option<u64>,
}

/// Whether the owner of its farm wants a node there.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    approved: bool,
}

/// Nodes, by id.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(
    ("farm" = Option<u64>, Query), ("approved" = Option<bool>, Query),
    ("page" = Option<u64>, Query, description = "From 1"),
    ("size" = Option<u64>, Query, description = "50 without it, 1000 at most")),
    responses((status = 200, body = [LedgerNodeView]), (status = 400, body = Failure)))]
pub async fn list(
    State(app): State<Arc<App>>,
    Query(which): Query<Which>,
) -> Reply<Json<Vec<LedgerNodeView>>> {
    let filter = StatusFilter { id: None, farm: which.farm, approved: which.approved };
    let page = page(which.page, which.size);
    Ok(Json(app.db.node_views(&filter, page, clock::now_secs()).await?))
}

/// One node.
#[utoipa::path(get, path = "/nodes/{id}", tag = "nodes", params(("id" = u64, Path)),
    responses((status = 200, body = LedgerNodeView), (status = 400, body = Failure), (status = 404, body = Failure)))]
pub async fn get(
    State(app): State<Arc<App>>,
    Path(id): Path<NodeId>,
) -> Reply<Json<LedgerNodeView>> {
    Ok(Json(node(&app, id).await?))
}

/// The owner of its farm approves of a node, or no longer does.
#[utoipa::path(put, path = "/nodes/{id}/approval", tag = "nodes", params(("id" = u64, Path)),
    request_body = Approval,
    responses((status = 200, body = LedgerNodeView), (status = "4XX", body = Failure)))]
pub async fn approve(
    State(app): State<Arc<App>>,
    Path(id): Path<NodeId>,
    signed: Signed,
) -> Reply<Json<LedgerNodeView>> {
    let wanted: Approval = read(&signed.body)?;
    let mut change = Change::begin(&app, &signed).await?;
    let place = access::place_of(&mut change.tx, id).await?;
    let (farm, _) = place.ok_or_else(|| no_node(id))?;
    change.owns(farm).await?;
    access::set_approved(&mut change.tx, id, wanted.approved).await?;
    let action = if wanted.approved { "node.approve" } else { "node.disapprove" };
    let subject = Subject::Node(id);
    change.done(action, &subject, &wanted, [subject]).await?;
    Ok(Json(node(&app, id).await?))
}

/// A node says what it has free and how it is. Only the newest counts.
#[utoipa::path(post, path = "/nodes/{id}/status", tag = "nodes", params(("id" = u64, Path)),
    request_body = NodeReport,
    responses((status = 200, body = LedgerNodeView), (status = "4XX", body = Failure)))]
pub async fn report(
    State(app): State<Arc<App>>,
    Path(id): Path<NodeId>,
    signed: Signed,
) -> Reply<Json<LedgerNodeView>> {
    let report: NodeReport = read(&signed.body)?;
    if report.reasons.len() > MAX_REASONS || report.reasons.iter().any(|r| r.len() > MAX_REASON) {
        let message = format!("reasons: at most {MAX_REASONS} of {MAX_REASON} bytes");
        return Err(Refusal::bad_request(message));
    }
    let amounts = report.capacity.iter().flat_map(|c| [c.total, c.reserved, c.free]);
    in_range(amounts.flat_map(|c| [c.memory.0, c.disk.0]))?;
    let mut change = Change::begin(&app, &signed).await?;
    let place = access::place_of(&mut change.tx, id).await?;
    let (_, account) = place.ok_or_else(|| no_node(id))?;
    if account != change.account {
        let message = format!("node {id} is account {account}'s, and you are {}", change.account);
        return Err(Refusal::new(Code::Unauthorised, message));
    }
    let created = signed.request.created;
    if !db::put_report(&mut change.tx, id, &report, created).await? {
        let message = format!("node {id} has said how it is at that time, or later");
        return Err(Refusal::new(Code::StaleVersion, message));
    }
    // No change of what the ledger vouches for: it is in no statement and not in the audit log.
    change.tx.commit().await?;
    Ok(Json(node(&app, id).await?))
}

async fn node(app: &App, id: NodeId) -> Reply<LedgerNodeView> {
    app.db.node_view(id, clock::now_secs()).await?.ok_or_else(|| no_node(id))
}

fn no_node(id: NodeId) -> Refusal {
    Refusal::not_found(format_args!("node {id}"))
}
