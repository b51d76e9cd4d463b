//! Who may use a farm: its access, its grants, the coordinators that may follow its nodes. All of it
//! is its owner's to change.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rhizome_model::statement::{Farm, FarmAccess, Grant, GrantId, MAX_GRANTS, Subject};
use rhizome_model::{AccountId, Capacity, Code, Failure, FarmId, KeyId, NodeId};
use rhizome_service::clock;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::change::{Change, Signed};
use super::{Path, Refusal, Reply, in_range, read};
use crate::App;
use crate::db::{DbError, access};

/// Coordinators that a farm may name.
const MAX_TRUSTED: u64 = 32;

/// Whom a farm is open to.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessChange {
    access: FarmAccess,
}

/// An account may use so much of the farm, or of one node of it, until then.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGrant {
    account: AccountId,
    #[serde(default)]
    node: Option<NodeId>,
    capacity: Capacity,
    /// Unix seconds.
    #[serde(default)]
    until: Option<i64>,
}

/// Whom a farm is open to, and what it has granted.
#[utoipa::path(get, path = "/farms/{id}", tag = "farms", params(("id" = u64, Path)),
    responses((status = 200, body = Farm), (status = 400, body = Failure), (status = 404, body = Failure)))]
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<FarmId>) -> Reply<Json<Farm>> {
    Ok(Json(farm(&app, id).await?))
}

/// Opens a farm to every account, or closes it to all but the owner and those with a grant.
#[utoipa::path(put, path = "/farms/{id}/access", tag = "farms", params(("id" = u64, Path)),
    request_body = AccessChange,
    responses((status = 200, body = Farm), (status = "4XX", body = Failure)))]
pub async fn set_access(
    State(app): State<Arc<App>>,
    Path(id): Path<FarmId>,
    signed: Signed,
) -> Reply<Json<Farm>> {
    let wanted: AccessChange = read(&signed.body)?;
    let mut change = Change::begin(&app, &signed).await?;
    change.owns(id).await?;
    access::set_access(&mut change.tx, id, wanted.access).await?;
    let action = match wanted.access {
        FarmAccess::Open => "farm.open",
        FarmAccess::Closed => "farm.close",
    };
    let subject = Subject::Farm(id);
    change.done(action, &subject, &wanted, [subject]).await?;
    Ok(Json(farm(&app, id).await?))
}

/// Grants an account so much of the farm, all its nodes together, or of one node.
#[utoipa::path(post, path = "/farms/{id}/grants", tag = "farms", params(("id" = u64, Path)),
    request_body = NewGrant,
    responses((status = 201, body = Grant), (status = "4XX", body = Failure)))]
pub async fn grant(
    State(app): State<Arc<App>>,
    Path(id): Path<FarmId>,
    signed: Signed,
) -> Reply<(StatusCode, Json<Grant>)> {
    let wanted: NewGrant = read(&signed.body)?;
    let now = clock::now_secs();
    in_range([wanted.capacity.memory.0, wanted.capacity.disk.0])?;
    if wanted.until.is_some_and(|until| until <= now) {
        return Err(Refusal::bad_request("until: a time to come, in Unix seconds"));
    }
    let mut change = Change::begin(&app, &signed).await?;
    change.owns(id).await?;
    if let Some(node) = wanted.node {
        let of_farm = access::place_of(&mut change.tx, node).await?.is_some_and(|(f, _)| f == id);
        if !of_farm {
            return Err(Refusal::not_found(format_args!("node {node} in farm {id}")));
        }
    }
    if access::count_grants(&mut change.tx, id, now).await? >= MAX_GRANTS as u64 {
        let message = format!("a farm has at most {MAX_GRANTS} grants; take some back");
        return Err(Refusal::new(Code::Conflict, message));
    }
    let NewGrant { account, node, capacity, until } = wanted;
    let grant = Grant { id: 0, account, node, capacity, until };
    let grant = match access::add_grant(&mut change.tx, id, grant, now).await {
        Err(DbError::Dangling) => {
            return Err(Refusal::not_found(format_args!("account {account}")));
        }
        made => made?,
    };
    let subject = Subject::Farm(id);
    change.done("grant.give", &subject, &grant, [subject]).await?;
    Ok((StatusCode::CREATED, Json(grant)))
}

/// Takes a grant back. What is deployed stays; nothing new is taken.
#[utoipa::path(delete, path = "/farms/{id}/grants/{grant}", tag = "farms",
    params(("id" = u64, Path), ("grant" = u64, Path)),
    responses((status = 200, body = Farm), (status = "4XX", body = Failure)))]
pub async fn revoke(
    State(app): State<Arc<App>>,
    Path((id, grant)): Path<(FarmId, GrantId)>,
    signed: Signed,
) -> Reply<Json<Farm>> {
    let mut change = Change::begin(&app, &signed).await?;
    change.owns(id).await?;
    if !access::end_grant(&mut change.tx, id, grant, clock::now_secs()).await? {
        return Err(Refusal::not_found(format_args!("grant {grant} of farm {id}")));
    }
    let subject = Subject::Farm(id);
    change.done("grant.revoke", &subject, &json!({ "grant": grant }), [subject]).await?;
    Ok(Json(farm(&app, id).await?))
}

/// Lets a registered coordinator follow the farm's nodes: it sees all tasks there.
#[utoipa::path(put, path = "/farms/{id}/coordinators/{key}", tag = "farms",
    params(("id" = u64, Path), ("key" = String, Path)),
    responses((status = 200, body = Farm), (status = "4XX", body = Failure)))]
pub async fn trust(
    State(app): State<Arc<App>>,
    Path((id, key)): Path<(FarmId, KeyId)>,
    signed: Signed,
) -> Reply<Json<Farm>> {
    let mut change = Change::begin(&app, &signed).await?;
    change.owns(id).await?;
    let known = access::coordinator(&mut change.tx, &key).await?.filter(|c| !c.withdrawn);
    known.ok_or_else(|| Refusal::not_found(format_args!("coordinator {key}")))?;
    if access::count_trusted(&mut change.tx, id).await? >= MAX_TRUSTED {
        let message = format!("a farm names at most {MAX_TRUSTED} coordinators");
        return Err(Refusal::new(Code::Conflict, message));
    }
    access::trust(&mut change.tx, id, &key).await?;
    let subject = Subject::Farm(id);
    change.done("farm.trust", &subject, &json!({ "coordinator": key }), [subject]).await?;
    Ok(Json(farm(&app, id).await?))
}

/// Lets a coordinator follow the farm's nodes no longer.
#[utoipa::path(delete, path = "/farms/{id}/coordinators/{key}", tag = "farms",
    params(("id" = u64, Path), ("key" = String, Path)),
    responses((status = 200, body = Farm), (status = "4XX", body = Failure)))]
pub async fn distrust(
    State(app): State<Arc<App>>,
    Path((id, key)): Path<(FarmId, KeyId)>,
    signed: Signed,
) -> Reply<Json<Farm>> {
    let mut change = Change::begin(&app, &signed).await?;
    change.owns(id).await?;
    if !access::distrust(&mut change.tx, id, &key).await? {
        return Err(Refusal::not_found(format_args!("coordinator {key} of farm {id}")));
    }
    let subject = Subject::Farm(id);
    change.done("farm.distrust", &subject, &json!({ "coordinator": key }), [subject]).await?;
    Ok(Json(farm(&app, id).await?))
}

async fn farm(app: &App, id: FarmId) -> Reply<Farm> {
    let farm = app.db.farm_access(id, clock::now_secs()).await?;
    farm.ok_or_else(|| Refusal::not_found(format_args!("farm {id}")))
}
