//! What travels over HTTP between the services, and to users.

mod ledger;
mod manager;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    AccountId, Capacity, DeploymentId, DesiredResource, Failure, FarmId, JobId, JobState, KeyId,
    Name, NodeId, Phase, TraceId, Version,
};

pub use ledger::{
    CoordinatorRegistration, LedgerNodeView, NodeHealth, NodeReport, NodeUsage, UsageReply,
    UsageView,
};
pub use manager::{
    GenerateRequest, IdentityCopy, NodeIdentity, PurposeReply, PurposeRequest, Registered,
    UnsealReply, UnsealRequest, VerifyReply, VerifyRequest,
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

/// What a node has of a deployment, for a plan to be compared with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlanBase {
    pub facts: crate::NodeFacts,
    /// What a script may use here.
    pub limits: crate::Limits,
    /// The newest version that the node took; none when it never had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Where that version stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What the deployment may take: what is free, and what is reserved for it already.
    pub available: Capacity,
    /// What it may take by the grants of its account; none where that is what is free. What the account
    /// has of the farm on other nodes is not taken off: only the ledger knows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Capacity>,
    /// What the node keeps so.
    pub resources: Vec<DesiredResource>,
    /// How these are; null where there is nothing of one. One that could not be found out in time is
    /// not here.
    #[schema(value_type = std::collections::BTreeMap<String, Option<Object>>)]
    pub observed: crate::Observed,
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
    /// How it is joined to other nodes, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkView>,
}

/// How a node is joined to other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NetworkView {
    /// `mycelium` with its version, or `plain IPv6`.
    pub driver: String,
    /// Its resources have addresses in the /64 of this one.
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// Why other nodes may not be reached; none when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// How often its daemon was started again.
    #[serde(default)]
    pub restarts: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerView>,
    /// Networks of others to which there is a way.
    #[serde(default)]
    pub routes: usize,
    /// Ways that are kept for when another fails.
    #[serde(default)]
    pub fallback_routes: usize,
    /// What its daemon has routed.
    #[serde(default)]
    pub traffic: TrafficView,
}

/// A daemon that ours is, or should be, connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PeerView {
    pub endpoint: String,
    pub origin: PeerOrigin,
    pub state: PeerState,
    /// Bytes sent to it, and received.
    pub tx_bytes: u64,
    pub rx_bytes: u64,
}

/// How we came by a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeerOrigin {
    Configured,
    Inbound,
    Discovered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    Alive,
    Connecting,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrafficView {
    pub packets: u64,
    pub bytes: u64,
}

/// The runners of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolView {
    pub queues: Vec<String>,
    pub mode: PoolMode,
    /// How many runners there should be.
    pub scale: usize,
    pub runners: Vec<RunnerView>,
}

/// Whether a pool takes jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    #[default]
    Running,
    /// Its runners stay and start nothing new.
    Paused,
    /// Its runners end what they have and stop.
    Drained,
}

/// What an operator changes about a pool; what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<PoolMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<usize>,
}

/// What one account may use of a node's runners; what is absent is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountLimits {
    /// Jobs of one queue that run at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Jobs of one queue that start per second, on average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_s: Option<f64>,
    /// Jobs that may start at once after a silence; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunnerView {
    pub name: String,
    pub pid: u32,
    pub restarts: u32,
}

/// How a queue of a node stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct QueueView {
    pub node: NodeId,
    pub queue: String,
    pub mode: PoolMode,
    /// Jobs at a time of all its runners.
    pub slots: u64,
    pub ready: u64,
    pub running: u64,
    /// For a time: a pause before another attempt, or because they are not to start earlier.
    pub delayed: u64,
    /// Of those, the ones that failed before.
    pub retrying: u64,
    /// For other jobs.
    pub waiting: u64,
    /// Dead letters that are kept.
    pub dead: u64,
    /// Milliseconds that the oldest ready job has waited.
    pub oldest_ms: u64,
    /// Jobs that ended per second, over the last minute at most.
    pub rate_per_s: f64,
    /// Jobs that ended since the queue was made, by state.
    pub ended: BTreeMap<JobState, u64>,
    pub accounts: Vec<AccountQueueView>,
}

/// What of a queue is one account's; 0 is the node's own upkeep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccountQueueView {
    pub account: AccountId,
    pub ready: u64,
    pub running: u64,
    pub ended: BTreeMap<JobState, u64>,
}

/// A job of a node, with every attempt at it. Times are Unix milliseconds by the node's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobView {
    pub node: NodeId,
    pub id: JobId,
    pub queue: String,
    pub account: AccountId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Name>,
    /// What it does, in a word: `script`, `ensure`, `delete`, …
    pub work: String,
    pub state: JobState,
    pub submitted_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
    /// W3C trace id of the envelope that led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<JobId>,
    /// The job that it does again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<JobId>,
    /// Jobs that it still waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<JobId>,
    pub attempts: Vec<AttemptView>,
    /// What its runner last said about how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub progress: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The last lines that it printed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

/// One attempt of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttemptView {
    /// From 1.
    pub number: u32,
    pub runner: String,
    pub started_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
    /// None while it is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<AttemptEnd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Why an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptEnd {
    Succeeded,
    Failed,
    Cancelled,
    /// It failed, and another followed.
    Retried,
    /// Its runner died.
    Died,
    /// It was given back without having been tried, and does not count.
    Released,
}

/// A job that was asked for again under a new id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobAgain {
    pub id: JobId,
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
