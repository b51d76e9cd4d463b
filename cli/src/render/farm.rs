//! Farms, their nodes and their grants for people.

use rhizome_model::AccountId;
use rhizome_model::api::{LedgerNodeView, NodeHealth};
use rhizome_model::statement::{Farm, FarmAccess, FarmUse, Grant};

use super::{clean, table};

pub fn show(farm: &Farm) -> String {
    let access = match farm.access {
        FarmAccess::Open => "open to every account",
        FarmAccess::Closed => "closed to all but its owner and who has a grant",
    };
    let mut parts = vec![format!("farm {} of account {}: {access}", farm.id, farm.owner)];
    parts.extend(farm.coordinators.iter().map(|key| format!("followed by {key}")));
    if !farm.grants.is_empty() {
        parts.push(grants(&farm.grants));
    }
    parts.join("\n")
}

pub fn grants(grants: &[Grant]) -> String {
    let rows = grants.iter().map(|grant| {
        let until = grant.until.and_then(|secs| jiff::Timestamp::from_second(secs).ok());
        [
            grant.id.to_string(),
            grant.account.to_string(),
            grant.node.map_or_else(|| "all together".into(), |n| n.to_string()),
            grant.capacity.to_string(),
            until.map_or_else(|| "taken back".into(), |until| until.to_string()),
        ]
    });
    table(["GRANT", "ACCOUNT", "NODE", "MAY USE", "UNTIL"], rows)
}

/// What accounts use of what they were granted of a whole farm.
pub fn used(used: &[(AccountId, FarmUse)]) -> String {
    let rows = used.iter().map(|(account, used)| {
        [account.to_string(), used.granted().to_string(), used.used().to_string()]
    });
    table(["ACCOUNT", "OF THE FARM", "IN USE"], rows)
}

pub fn nodes(nodes: &[LedgerNodeView]) -> String {
    let rows = nodes.iter().map(|node| {
        let free = node.capacity.map_or_else(|| "-".into(), |c| c.free.to_string());
        [
            node.id.to_string(),
            if node.approved { "approved" } else { "not approved" }.to_owned(),
            if node.online { "up" } else { "down" }.to_owned(),
            health(&node.health),
            free,
            node.address.map_or_else(|| "-".into(), |a| a.to_string()),
        ]
    });
    table(["NODE", "APPROVAL", "UPTIME", "HEALTH", "FREE", "ADDRESS"], rows)
}

fn health(health: &NodeHealth) -> String {
    match health {
        NodeHealth::Healthy => "healthy".into(),
        NodeHealth::Unhealthy { reasons } => format!("unhealthy: {}", clean(&reasons.join("; "))),
        NodeHealth::Silent => "silent".into(),
        NodeHealth::Unknown => "unknown".into(),
    }
}
