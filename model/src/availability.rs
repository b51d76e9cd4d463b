//! How much of a time nodes were up, as the ledger answers it.
//!
//! ```text
//!   GET /v2/nodes/{id}/availability?from=…&until=…   Availability
//!   GET /v2/availability?from=…&until=…&page=…       [Share]
//! ```
//!
//! Up is what signed reports vouch for: the time since the boot, an hour before the report at most.
//! What no report vouches for counts as down, until a report that was kept while the node was cut off
//! arrives.

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// What one node was up of a window. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Availability {
    pub node_id: NodeId,
    /// The window that is meant: it begins when the node was registered, and ends now, if not within.
    pub from: i64,
    pub until: i64,
    pub up_s: u64,
    /// From 0 to 1. None when the window is empty.
    pub share: Option<f64>,
    /// Where nothing vouches for the node.
    pub gaps: Vec<Gap>,
    /// What was odd within the window.
    pub events: Vec<UptimeEvent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Gap {
    pub from: i64,
    pub until: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UptimeEvent {
    pub at: i64,
    /// `restart`, `skew` (its clock was set while it ran, or is not ours), `lie` (more uptime than
    /// time).
    pub kind: String,
    pub detail: String,
}

/// The same of many nodes, in a word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Share {
    pub node_id: NodeId,
    pub up_s: u64,
    /// From 0 to 1. None when the node was not registered within the window.
    pub share: Option<f64>,
}
