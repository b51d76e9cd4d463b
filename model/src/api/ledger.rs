//! What the ledger takes and shows on `/v2`.

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

use super::CapacityView;
use crate::{AccountId, Capacity, FarmId, KeyId, NodeId};

/// What a node tells the ledger about itself, signed with its key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeReport {
    /// Absent while the node does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityView>,
    /// Why it cannot deploy; none when it can.
    #[serde(default)]
    pub reasons: Vec<String>,
}

/// What an account's deployments reserve of a node, as the node says it; signed with its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeUsage {
    pub account: AccountId,
    /// Orders what the node says of this account: the larger is the newer.
    pub number: u64,
    pub capacity: Capacity,
    /// Whether they have it already: then it is so, whatever was granted. Otherwise they want it.
    #[serde(default)]
    pub reserved: bool,
}

/// Whether the ledger took what a node said of an account, and what it holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageReply {
    pub taken: bool,
    pub number: u64,
    pub capacity: Capacity,
}

/// What an account's deployments reserve of a node, as the ledger lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UsageView {
    pub account: AccountId,
    pub node: NodeId,
    pub capacity: Capacity,
}

/// A request for a coordinator to be known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CoordinatorRegistration {
    /// Where it listens.
    pub url: String,
    /// Base64 of the signature of the coordinator's key over its claim.
    pub proof: String,
}

impl CoordinatorRegistration {
    /// What the coordinator's key signs.
    pub fn claim(network: &str, account: AccountId, url: &str) -> String {
        format!("rhizome coordinator v1\n{network}\n{account}\n{url}")
    }
}

/// How a node is, apart from whether it is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum NodeHealth {
    Healthy,
    /// It says itself that it cannot deploy, and why.
    Unhealthy {
        reasons: Vec<String>,
    },
    /// It has not said anything for some minutes.
    Silent,
    /// It never said.
    Unknown,
}

/// A node as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LedgerNodeView {
    pub id: NodeId,
    pub farm: FarmId,
    pub account: AccountId,
    pub key: KeyId,
    /// In Mycelium, from its key; none where the key is not usable.
    #[schema(value_type = Option<String>)]
    pub address: Option<Ipv6Addr>,
    /// By the owner of its farm, or because it is the owner's own.
    pub approved: bool,
    pub supervisor_url: Option<String>,
    /// By uptime reports.
    pub online: bool,
    /// RFC 3339.
    pub last_seen: Option<String>,
    /// As the node reported it.
    pub capacity: Option<CapacityView>,
    pub health: NodeHealth,
    /// When it said how it is. RFC 3339.
    pub reported_at: Option<String>,
}
