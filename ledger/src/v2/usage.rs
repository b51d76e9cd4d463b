//! What accounts use of farms. A grant of a farm counts over all its nodes together, so a node asks
//! here before an account has more of it than was granted of the node itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use rhizome_model::api::{NodeUsage, UsageReply, UsageView};
use rhizome_model::statement::{FarmAccess, Subject};
use rhizome_model::{AccountId, Code, Failure, FarmId, NodeId};
use rhizome_service::clock;
use serde::Deserialize;

use super::change::{Change, Signed};
use super::{Path, Query, Refusal, Reply, in_range, page, read};
use crate::App;
use crate::db::keys::is_account;
use crate::db::usage::{self, Standing};

#[derive(Deserialize)]
pub struct Which {
    account: Option<u64>,
    page: Option<u64>,
    size: Option<u64>,
}

/// What accounts reserve of the farm's approved nodes, by account and node. Nodes say it of accounts
/// that a closed farm has granted something.
#[utoipa::path(get, path = "/farms/{id}/usage", tag = "farms", params(("id" = u64, Path),
    ("account" = Option<u64>, Query),
    ("page" = Option<u64>, Query, description = "From 1"),
    ("size" = Option<u64>, Query, description = "50 without it, 1000 at most")),
    responses((status = 200, body = [UsageView]), (status = 400, body = Failure), (status = 404, body = Failure)))]
pub async fn list(
    State(app): State<Arc<App>>,
    Path(id): Path<FarmId>,
    Query(which): Query<Which>,
) -> Reply<Json<Vec<UsageView>>> {
    let account = which.account.map(AccountId);
    let found = app.db.usage_of_farm(id, account, page(which.page, which.size)).await?;
    found.map(Json).ok_or_else(|| Refusal::not_found(format_args!("farm {id}")))
}

/// A node says what an account's deployments reserve of it: more before they do, less afterwards.
/// More is taken as far as grants allow it, less always, and nothing that is older than what is held.
/// What is reserved already, from before the farm was closed or a grant ended, is taken as it is.
#[utoipa::path(post, path = "/nodes/{id}/usage", tag = "nodes", params(("id" = u64, Path)),
    request_body = NodeUsage,
    responses((status = 200, body = UsageReply), (status = "4XX", body = Failure)))]
pub async fn tell(
    State(app): State<Arc<App>>,
    Path(id): Path<NodeId>,
    signed: Signed,
) -> Reply<Json<UsageReply>> {
    let said: NodeUsage = read(&signed.body)?;
    in_range([said.number, said.capacity.memory.0, said.capacity.disk.0])?;
    let mut change = Change::begin(&app, &signed).await?;
    let node = usage::standing(&mut change.tx, id).await?;
    let node = node.ok_or_else(|| Refusal::not_found(format_args!("node {id}")))?;
    if node.account != change.account {
        let (owner, caller) = (node.account, change.account);
        let message = format!("node {id} is account {owner}'s, and you are {caller}");
        return Err(Refusal::new(Code::Unauthorised, message));
    }
    let held = usage::held(&mut change.tx, id, said.account).await?;
    if let Some(held) = held.filter(|held| said.number <= held.number) {
        // Nothing changes, so the change ends here.
        let same = (held.number, held.capacity) == (said.number, said.capacity);
        return Ok(Json(reply(same, held)));
    }
    if !is_account(&mut change.tx, said.account).await? {
        return Err(Refusal::not_found(format_args!("account {}", said.account)));
    }
    let asks = !said.reserved && node.access == FarmAccess::Closed;
    if asks && node.owner != said.account {
        admit(&mut change, id, &node, &said).await?;
    }
    usage::put(&mut change.tx, id, &said).await?;
    change.done("node.usage", &Subject::Node(id), &said, []).await?;
    Ok(Json(reply(true, said)))
}

async fn admit(change: &mut Change, id: NodeId, node: &Standing, said: &NodeUsage) -> Reply<()> {
    let now = clock::now_secs();
    let used = usage::farm_use(&mut change.tx, node.farm, id, said.account, now).await?;
    // Everybody can register a node in a farm: without this, a stranger's would use its grants up.
    let used = if node.approved { used } else { used.of_nodes_only() };
    used.admit(id, said.capacity).map_err(|exceeded| {
        let message = if node.approved {
            exceeded.to_string()
        } else {
            format!(
                "the owner of farm {} has not approved of node {id} (`rhizome farm approve`), so \
                 grants of the whole farm do not count there: {exceeded}",
                node.farm
            )
        };
        Refusal::new(Code::NotGranted, message)
    })
}

const fn reply(taken: bool, held: NodeUsage) -> UsageReply {
    UsageReply { taken, number: held.number, capacity: held.capacity }
}
