//! Drift: how a resource differs from what it should be, and what is done about it.

use serde::{Deserialize, Serialize};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Drift {
    /// There is nothing of it, or not enough.
    Missing,
    /// Its program ended by itself.
    Ended,
    /// It does not run though it should, and nothing watches it: after a reboot, for example.
    Lost,
    /// It runs, and does not answer.
    Hung,
    /// Its namespace, link, address or route is gone.
    Network,
    /// A volume is not mounted in it.
    Mount,
    /// What it may use is not limited as declared.
    Limit,
    /// It was made for another spec than the declared one.
    Spec,
    /// It carries our mark, and no task knows it.
    Orphan,
}

/// What was done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// Made again.
    Made,
    /// Started again.
    Started,
    /// It is started again after a pause.
    Waits,
    /// Put right while it runs.
    Restored,
    /// Nothing: its restart policy lets it rest.
    Left,
    Removed,
}

/// One difference and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Drifted {
    pub drift: Drift,
    pub action: Repair,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// When it waits: how long from the event on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_ms: Option<u64>,
}
