//! What travels over HTTP between the services, and to users.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    AccountId, Capacity, DeploymentId, DesiredResource, Failure, FarmId, JobState, KeyId, Name,
    NodeId, Phase, Version,
};

/// coord's answer to an envelope that it accepted: it is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Submitted {
    pub deployment: DeploymentId,
    pub version: Version,
    pub phase: Phase,
    pub nodes: Vec<NodeId>,
    /// The id of the last event before this submission: follow from here.
    pub after: u64,
}

/// A deployment as coord sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeploymentView {
    pub deployment: DeploymentId,
    pub version: Version,
    pub phase: Phase,
    /// Unix milliseconds.
    pub submitted_at: i64,
    pub updated_at: i64,
    pub tasks: Vec<TaskView>,
}

/// A task as its node, or coord for it, shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskView {
    pub deployment: DeploymentId,
    pub version: Version,
    pub node: NodeId,
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    #[serde(default)]
    #[schema(value_type = Object)]
    pub outputs: BTreeMap<String, Value>,
    #[serde(default)]
    pub resources: Vec<ResourceView>,
    pub reserved: Capacity,
    /// Why nothing moves, while nothing moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ResourceView {
    #[serde(flatten)]
    pub resource: DesiredResource,
    /// The status when it was last made or seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub status: Option<Value>,
}

/// Which nodes shall have a deployment, before it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementRequest {
    pub count: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlacementReply {
    pub nodes: Vec<NodeView>,
}

/// A node as coord sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeView {
    pub id: NodeId,
    pub farm: FarmId,
    pub key: KeyId,
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// By uptime reports.
    pub online: bool,
    /// Whether its supervisor answers.
    pub reachable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityView>,
    /// Why it cannot deploy, where it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CapacityView {
    pub total: Capacity,
    pub reserved: Capacity,
    pub free: Capacity,
}

/// A node as it sees itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeStatus {
    #[serde(flatten)]
    pub facts: crate::NodeFacts,
    pub key: KeyId,
    pub usage: CapacityView,
    pub pools: Vec<PoolView>,
}

/// The runners of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolView {
    pub queues: Vec<String>,
    pub runners: Vec<RunnerView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunnerView {
    pub name: String,
    pub pid: u32,
    pub restarts: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct QueueView {
    pub node: NodeId,
    pub queue: String,
    pub ready: u64,
    pub running: u64,
    pub delayed: u64,
    pub dead: u64,
    /// Milliseconds that the oldest ready job has waited.
    pub oldest_ms: u64,
    /// Jobs that ended since the queue was made, by state.
    pub ended: BTreeMap<JobState, u64>,
}

/// A command for inside a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    pub command: Vec<String>,
}

/// One line of a stream of output (`application/x-ndjson`); the last one is `exit` or `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "stream", rename_all = "snake_case")]
pub enum OutputChunk {
    Stdout {
        /// Base64.
        data: String,
    },
    Stderr {
        /// Base64.
        data: String,
    },
    /// The action ended.
    Exit {
        #[schema(value_type = Object)]
        result: Value,
    },
    Failed {
        failure: Failure,
    },
}

/// An account of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccountView {
    pub id: AccountId,
    pub key: KeyId,
}

/// One line of what a resource printed: the payload of a `logs` stream event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogLine {
    pub resource: Name,
    pub line: String,
}

/// Who a node is, as its identity manager says it on its unix socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeIdentity {
    pub key: KeyId,
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// None until the ledger knows the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<Registered>,
    /// Why it is not registered, or could not report lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A node's ids in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Registered {
    pub account: AccountId,
    pub farm: FarmId,
    pub node: NodeId,
}

/// Asks a node's identity manager to open a secret (`POST /v1/unseal` on its unix socket).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnsealRequest {
    /// What the secret is for: `ACCOUNT/DEPLOYMENT/NAME`.
    pub context: String,
    pub sealed: String,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UnsealReply {
    /// Base64.
    pub secret: String,
}

// Not derived: a secret appears in no log.
impl std::fmt::Debug for UnsealReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UnsealReply { secret: … }")
    }
}
