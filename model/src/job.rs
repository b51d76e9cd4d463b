//! Jobs: what runners do, one attempt at a time.
//!
//! ```text
//!             Ready            Claim             Succeed
//!   waiting ────────▶ queued ──────────▶ running ───────────▶ succeeded
//!                      ▲  ▲  ◀────────── │ │ │ │    Fail
//!                  Due │  │    Release   │ │ │ └────────────▶ failed
//!                      │  │              │ │ │    Cancel
//!   delayed ───────────┘  │              │ │ └──────────────▶ cancelled
//!      ▲                  │              │ │    Quarantine
//!      └──────────────────────── Retry ──┘ └────────────────▶ quarantined
//! ```
//!
//! A job begins waiting (for other jobs), delayed (until a time) or queued; one that waited and is not
//! to start yet becomes delayed (Defer). Until it runs it can
//! expire; until it ends it can be cancelled. One that waits fails when a job that it needs did.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    AccountId, DeploymentId, Failure, JobId, Name, ResourceId, TraceId, Version, WorkloadKind,
};

/// What a runner is asked to do. To the queue itself the work is opaque.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub queue: String,
    pub account: AccountId,
    /// The deployment that it is for; none for the node's own upkeep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<DeploymentId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Name>,
    #[serde(default)]
    pub priority: Priority,
    /// Attempts that may end in failure or with their runner's death.
    pub max_attempts: u32,
    /// The longest that one attempt may take, in milliseconds.
    pub timeout_ms: u64,
    /// Unix milliseconds, by the node's clock: not started after this, it ends as expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    /// Unix milliseconds, by the node's clock: not started before this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<i64>,
    /// The job that asked for this one, and is cancelled together with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<JobId>,
    /// Not started before all of these have succeeded; fails when one of them ends otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobId>,
    /// While a job with this key has not ended, no other with it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<String>,
    /// Jobs of one key run one at a time, in the order in which they were submitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// The job that was to be done again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<JobId>,
    /// The effect of its deployment's script that ends with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<Ends>,
    /// Ties everything together that one envelope led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceId>,
    pub work: Work,
}

impl Job {
    /// A job that may start at once, in three attempts of ten minutes each.
    pub fn new(id: JobId, queue: impl Into<String>, account: AccountId, work: Work) -> Self {
        Self {
            id,
            queue: queue.into(),
            account,
            deployment: None,
            version: None,
            resource: None,
            priority: Priority::Normal,
            max_attempts: 3,
            timeout_ms: 10 * 60 * 1000,
            expires_at: None,
            starts_at: None,
            parent: None,
            after: Vec::new(),
            unique: None,
            order: None,
            again: None,
            ends: None,
            trace: None,
            work,
        }
    }
}

/// Which effect of a script ends with a job: how is written into the journal in the same step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// Its number.
    pub call: u64,
    /// Another job follows if this one succeeds: the effect goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_failed: bool,
}

/// 0 is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    High,
    #[default]
    Normal,
    Low,
}

impl Priority {
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Work {
    /// Evaluate the script of a task and make what it declares.
    Script,
    /// Make the node match what the task holds as desired: after a start, or to undo.
    Settle,
    /// Delete everything that the task holds.
    Teardown,
    /// Make a resource so; its answer is the status.
    Ensure { kind: WorkloadKind, id: ResourceId, spec: Value },
    /// See whether a resource is as it should be, and make it so where it is not; its answer is the
    /// status.
    Keep { kind: WorkloadKind, id: ResourceId, spec: Value },
    /// See how a resource is; its answer is the status, or null.
    Observe { kind: WorkloadKind, id: ResourceId },
    /// Make a resource be gone.
    Delete { kind: WorkloadKind, id: ResourceId },
    /// Do something with a resource; what it prints goes to the job's output stream.
    Act { kind: WorkloadKind, id: ResourceId, action: Action },
    /// Remove what carries our mark and no task knows; its answer is the list of what was removed.
    Sweep { kind: WorkloadKind },
}

impl Work {
    /// What it does, in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Script => "script",
            Self::Settle => "settle",
            Self::Teardown => "teardown",
            Self::Ensure { .. } => "ensure",
            Self::Keep { .. } => "keep",
            Self::Observe { .. } => "observe",
            Self::Delete { .. } => "delete",
            Self::Sweep { .. } => "sweep",
            Self::Act { action, .. } => action.word(),
        }
    }

    /// The kind of workload that it is about; none for what scripts do.
    pub fn kind(&self) -> Option<WorkloadKind> {
        match self {
            Self::Script | Self::Settle | Self::Teardown => None,
            Self::Ensure { kind, .. }
            | Self::Keep { kind, .. }
            | Self::Observe { kind, .. }
            | Self::Delete { kind, .. }
            | Self::Act { kind, .. }
            | Self::Sweep { kind } => Some(*kind),
        }
    }
}

/// A named action of a workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    Start,
    Stop,
    Restart,
    /// Run a command inside; its answer is `{"exit_code": n}`.
    Exec {
        command: Vec<String>,
    },
    /// Wait for the end; its answer is `{"exit_code": n, "output": text}` with the last 64 KiB of
    /// what was printed on standard output.
    Wait,
    /// The last `tail` lines, and with `follow` those to come.
    Logs {
        tail: usize,
        follow: bool,
    },
    /// Keep what a volume holds now under a name.
    Snapshot {
        name: Name,
    },
    /// Bring a volume back to what a snapshot holds.
    Restore {
        name: Name,
    },
    /// Forget a snapshot.
    DropSnapshot {
        name: Name,
    },
    /// Give fields of the spec other values, in place; what is desired and reserved changes with it.
    Resize {
        to: Map<String, Value>,
    },
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", content = "value", rename_all = "snake_case")]
pub enum Outcome {
    Succeeded(Value),
    Failed(Failure),
    Cancelled,
}

/// Where a job stands.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// For other jobs to end.
    Waiting,
    Queued,
    Delayed,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Expired,
    Quarantined,
}

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobEvent {
    /// What it waited for has ended well.
    Ready,
    /// The same, but it is not to start yet.
    Defer,
    Claim,
    Succeed,
    Fail,
    /// Failed, but there are attempts left: again after a pause.
    Retry,
    /// Given back without having been tried: a drain, or a runner that died.
    Release,
    Due,
    Cancel,
    Expire,
    /// It took its runner with it too often.
    Quarantine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {state:?} cannot {event:?}")]
pub struct IllegalJobEvent {
    pub state: JobState,
    pub event: JobEvent,
}

impl JobState {
    pub const ALL: [Self; 9] = [
        Self::Waiting,
        Self::Queued,
        Self::Delayed,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
        Self::Quarantined,
    ];

    pub fn is_ended(self) -> bool {
        match self {
            Self::Waiting | Self::Queued | Self::Delayed | Self::Running => false,
            Self::Succeeded
            | Self::Failed
            | Self::Cancelled
            | Self::Expired
            | Self::Quarantined => true,
        }
    }

    /// The one place that says which event leads where.
    pub fn step(self, event: JobEvent) -> Result<Self, IllegalJobEvent> {
        use JobEvent::{
            Cancel, Claim, Defer, Due, Expire, Fail, Quarantine, Ready, Release, Retry, Succeed,
        };
        let next = match (self, event) {
            (Self::Waiting, Ready) => Self::Queued,
            (Self::Waiting, Defer) => Self::Delayed,
            (Self::Queued, Claim) => Self::Running,
            (Self::Waiting | Self::Queued | Self::Delayed | Self::Running, Cancel) => {
                Self::Cancelled
            }
            (Self::Waiting | Self::Queued | Self::Delayed, Expire) => Self::Expired,
            (Self::Delayed, Due) => Self::Queued,
            (Self::Running, Succeed) => Self::Succeeded,
            (Self::Waiting | Self::Running, Fail) => Self::Failed,
            (Self::Running, Retry) => Self::Delayed,
            (Self::Running, Release) => Self::Queued,
            (Self::Running, Quarantine) => Self::Quarantined,
            (Self::Waiting, Claim | Succeed | Retry | Release | Due | Quarantine)
            | (Self::Queued, Ready | Defer | Succeed | Fail | Retry | Release | Due | Quarantine)
            | (
                Self::Delayed,
                Ready | Defer | Claim | Succeed | Fail | Retry | Release | Quarantine,
            )
            | (Self::Running, Ready | Defer | Claim | Due | Expire)
            | (
                Self::Succeeded
                | Self::Failed
                | Self::Cancelled
                | Self::Expired
                | Self::Quarantined,
                Ready | Defer | Claim | Succeed | Fail | Retry | Release | Due | Cancel | Expire
                | Quarantine,
            ) => return Err(IllegalJobEvent { state: self, event }),
        };
        Ok(next)
    }
}

/// The queue of scripts and of what follows from them.
pub const SCRIPT_QUEUE: &str = "script";

/// The queue of a piece of work: scripts have their own, operations that of their kind. Actions can
/// last (a log that is followed), so they do not stand in the way of operations.
pub fn queue_name(work: &Work) -> String {
    match work {
        Work::Script | Work::Settle | Work::Teardown => SCRIPT_QUEUE.into(),
        Work::Ensure { kind, .. }
        | Work::Keep { kind, .. }
        | Work::Observe { kind, .. }
        | Work::Delete { kind, .. }
        | Work::Sweep { kind } => kind.to_string(),
        Work::Act { kind, .. } => format!("{kind}-actions"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_job_stays_as_it_is() {
        use JobEvent::*;
        for state in JobState::ALL.into_iter().filter(|s| s.is_ended()) {
            for event in [
                Ready, Defer, Claim, Succeed, Fail, Retry, Release, Due, Cancel, Expire, Quarantine,
            ] {
                assert!(state.step(event).is_err(), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn every_job_can_still_end() {
        for state in JobState::ALL.into_iter().filter(|s| !s.is_ended()) {
            assert!(state.step(JobEvent::Cancel).unwrap().is_ended());
        }
    }
}
