//! Events: what happened to a deployment, in the order in which it happened.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{DeploymentId, Drifted, Failure, Name, NodeId, Phase, Version, WorkloadKind};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Event {
    /// Unix milliseconds on the node, or at coord where coord itself says it.
    pub at: i64,
    pub deployment: DeploymentId,
    pub version: Version,
    /// The node that says it; none when coord does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The task went into a phase. With `failed` and `refused` the cause; with `ready` the outputs.
    Phase {
        phase: Phase,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Failure>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<Object>)]
        outputs: Option<Value>,
    },
    /// The script declared a resource.
    Declared { resource: Name, kind: WorkloadKind, line: usize },
    /// A resource is as declared.
    Ready {
        resource: Name,
        kind: WorkloadKind,
        #[schema(value_type = Object)]
        status: Value,
        /// What it took, as far as the attempt that came to the end saw it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        done: Option<Done>,
    },
    /// An operation on a resource failed; with `retry_in_ms` it will be tried again.
    ResourceFailed {
        resource: Name,
        kind: WorkloadKind,
        failure: Failure,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_in_ms: Option<u64>,
    },
    /// A resource is gone.
    ResourceDeleted { resource: Name, kind: WorkloadKind },
    /// The script said something with `log(…)`.
    Log { message: String },
    /// The script said something with `output(…)`.
    Output {
        key: String,
        #[schema(value_type = Object)]
        value: Value,
    },
    /// Something is tried again, and why.
    Retrying { what: String, cause: String, in_ms: u64 },
    /// A resource was not as desired; what was done about it, and why it came to that if known.
    Drift {
        resource: Name,
        kind: WorkloadKind,
        #[serde(flatten)]
        drifted: Drifted,
    },
}

/// What making a resource so took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    Created,
    /// Its spec changed, in place.
    Updated,
    /// Its spec changed, and it was made anew.
    Replaced,
    /// Its spec did not change, but not all of it was there.
    Restored,
    Unchanged,
}

impl Done {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Replaced => "replaced",
            Self::Restored => "restored",
            Self::Unchanged => "unchanged",
        }
    }
}
