//! `/nodes`: machines that serve, and their uptime.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use rhizome_model::registrar::{Acknowledged, Node, NodeCreated, NodeRegistration, ONLINE_MINUTES};
use rhizome_model::{AccountId, Failure, NodeId};

use crate::auth::Authenticated;
use crate::db::{DbError, NodeFilter};
use crate::error::{LedgerError, Reply};
use crate::request::{Body, Params, Total, check_text, parse_number};
use crate::{App, time};

const MAX_INTERFACES: usize = 64;
const MAX_ADDRESSES: usize = 64;
const MAX_TEXT: usize = 256;
/// Amounts are numbers of 63 bits in the database.
const MAX_AMOUNT: u64 = i64::MAX as u64;

/// Nodes, by id.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(
    ("node_id" = Option<u64>, Query), ("farm_id" = Option<u64>, Query), ("twin_id" = Option<u64>, Query),
    ("online" = Option<bool>, Query, description = "Whether it reported within `last_seen` minutes"),
    ("last_seen" = Option<u64>, Query, description = "Minutes; 40 without it"),
    ("page" = Option<u64>, Query, description = "From 1"),
    ("size" = Option<u64>, Query, description = "50 without it, 1000 at most")),
    responses((status = 200, body = [Node]), (status = 400, body = Failure)))]
pub async fn list(
    State(app): State<Arc<App>>,
    query: Query<HashMap<String, String>>,
) -> Reply<(Total, Json<Vec<Node>>)> {
    let params = Params::new(query, "*db.NodeFilter");
    // v4 reads it and makes nothing of it.
    params.flag("healthy")?;
    let minutes = params.number("last_seen")?.map(|m| i64::try_from(m).unwrap_or(i64::MAX));
    let since = time::minutes_ago(minutes.unwrap_or(ONLINE_MINUTES));
    let online = params.flag("online")?;
    let filter = NodeFilter {
        id: params.number("node_id")?,
        farm: params.number("farm_id")?,
        account: params.number("twin_id")?,
        seen_after: (online.unwrap_or(minutes.is_some())).then_some(since),
        not_seen_after: (online == Some(false)).then_some(since),
    };
    let failed = |e| LedgerError::database("failed to list nodes", &e);
    let (nodes, total) = app.db.nodes(&filter, params.page()?).await.map_err(failed)?;
    Ok((Total(total), Json(nodes)))
}

/// One node.
#[utoipa::path(get, path = "/nodes/{node_id}", tag = "nodes", params(("node_id" = u64, Path)),
    responses((status = 200, body = Node), (status = 400, body = Failure), (status = 404, body = Failure)))]
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>) -> Reply<Json<Node>> {
    let id = node_id(&id, "Invalid node id")?;
    Ok(Json(find(&app, id, "could not find any records").await?))
}

/// Registers the node of the caller's account.
#[utoipa::path(post, path = "/nodes", tag = "nodes", request_body = NodeRegistration, responses(
    (status = 201, body = NodeCreated), (status = 400, body = Failure), (status = 401, body = Failure),
    (status = 404, description = "there is no such farm", body = Failure),
    (status = 409, description = "the account has a node", body = Failure)))]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Authenticated,
    body: Body,
) -> Reply<(StatusCode, Json<NodeCreated>)> {
    let node: NodeRegistration = body.json().map_err(LedgerError::bad_request)?;
    if node.twin_id == AccountId(0) {
        return Err(LedgerError::bad_request("twin_id must be a number from 1"));
    }
    check(&node).map_err(LedgerError::bad_request)?;
    caller.must_be(node.twin_id)?;
    match app.db.create_node(node.clone()).await {
        Ok(node_id) => {
            tracing::info!(node = %node_id, farm = %node.farm_id, account = %node.twin_id, "a node was registered");
            Ok((StatusCode::CREATED, Json(NodeCreated { node_id })))
        }
        Err(DbError::Duplicate) => Err(LedgerError::conflict("record already exists")),
        Err(DbError::Dangling) => Err(LedgerError::not_found("farm not found")),
        Err(e) => Err(LedgerError::database("failed to register node", &e)),
    }
}

/// Replaces what a node says about itself.
#[utoipa::path(patch, path = "/nodes/{node_id}", tag = "nodes", params(("node_id" = u64, Path)),
    request_body = NodeRegistration, responses(
    (status = 200, body = Acknowledged), (status = 400, body = Failure),
    (status = 401, body = Failure), (status = 404, body = Failure)))]
pub async fn update(
    State(app): State<Arc<App>>,
    caller: Authenticated,
    Path(id): Path<String>,
    body: Body,
) -> Reply<Json<Acknowledged>> {
    let id = node_id(&id, "invalid node ID")?;
    let known = find(&app, id, "node not found").await?;
    caller.must_be(known.twin_id)?;
    let invalid = |e: String| LedgerError::bad_request(format!("invalid request body: {e}"));
    let node: NodeRegistration = body.json().map_err(invalid)?;
    check(&node).map_err(invalid)?;
    match app.db.update_node(id, &node).await {
        Ok(()) => Ok(Json(Acknowledged { message: "node updated successfully".into() })),
        Err(DbError::Dangling) => Err(LedgerError::not_found("farm not found")),
        Err(e) => Err(LedgerError::database("failed to update node", &e)),
    }
}

pub async fn find(app: &App, id: NodeId, missing: &'static str) -> Reply<Node> {
    app.db
        .node(id)
        .await
        .map_err(|e| LedgerError::database("failed to get node", &e))?
        .ok_or_else(|| LedgerError::not_found(missing))
}

pub fn node_id(text: &str, wrong: &'static str) -> Reply<NodeId> {
    parse_number(text).map(NodeId).map_err(|_| LedgerError::bad_request(wrong))
}

fn check(node: &NodeRegistration) -> Result<(), String> {
    if node.farm_id.0 == 0 {
        return Err("farm_id must be a number from 1".into());
    }
    if node.interfaces.is_empty() {
        return Err("interfaces must not be empty".into());
    }
    let addresses = node.interfaces.iter().map(|i| i.ips.len()).max().unwrap_or(0);
    if node.interfaces.len() > MAX_INTERFACES || addresses > MAX_ADDRESSES {
        return Err(format!(
            "interfaces: at most {MAX_INTERFACES}, with at most {MAX_ADDRESSES} ips each"
        ));
    }
    if node.serial_number.is_empty() {
        return Err("serial_number must not be empty".into());
    }
    let location = &node.location;
    let interfaces =
        node.interfaces.iter().flat_map(|i| [&i.name, &i.mac].into_iter().chain(&i.ips));
    let texts = [&node.serial_number, &location.country, &location.city]
        .into_iter()
        .chain([&location.longitude, &location.latitude])
        .chain(&node.supervisor_url)
        .chain(interfaces);
    for text in texts {
        check_text(text, MAX_TEXT)?;
    }
    if let Some(url) = &node.supervisor_url
        && !url.starts_with("http://")
        && !url.starts_with("https://")
    {
        return Err("supervisor_url must begin with http:// or https://".into());
    }
    let r = node.resources;
    if [r.hru, r.sru, r.cru, r.mru].into_iter().any(|amount| amount > MAX_AMOUNT) {
        return Err(format!("resources: an amount is {MAX_AMOUNT} at most"));
    }
    Ok(())
}
