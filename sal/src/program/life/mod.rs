//! The life of a program, as its shim sees it.
//!
//! ```text
//!              Started            Ended, it may rest
//!   Starting ──────────▶ Running ───────────────────▶ Exited
//!    ▲   │ │ NotStarted   │   │ Ended, not to rest
//!    │   │ └──▶ Failed    │   └──────▶ BackingOff ──Stop──▶ Stopped | Interrupted
//!    │   │ Stop           │ Stop          │                      ▲
//!    │   └─(on Started)─▶ Stopping ───────│──────Ended───────────┘
//!    └──────────────────Due───────────────┘
//! ```
//!
//! Exited, Stopped, Interrupted and Failed are ends: the shim goes. `NotStarted` is final only for
//! the first start; later it is an end like any other.
//!
//! A shim that is killed leaves its record behind; the next one takes over from it what was past
//! ([`Record::past`]): so a pause is waited out, and counted on, whoever dies.

mod record;
mod step;
#[cfg(test)]
mod tests;

use rhizome_model::kind::Restart;
use serde::{Deserialize, Serialize};

pub(crate) use self::record::Past;
pub(super) use self::record::Record;

/// Times are milliseconds on the shim's own clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "life", rename_all = "snake_case")]
pub(super) enum Life {
    Starting { stop: Option<Stop> },
    Running { pid: i32, since: u64 },
    Stopping { pid: i32, kill_at: u64, stop: Stop },
    BackingOff { until: u64, reason: String },
    Exited { reason: String },
    Stopped,
    Interrupted,
    Failed { reason: String },
}

/// Why it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stop {
    /// Somebody asked for it; it stays so.
    Request,
    /// The node goes down, or the resource goes away; it starts again when it is ensured again.
    Interrupt,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Started {
        pid: i32,
    },
    NotStarted {
        reason: String,
    },
    Ended {
        exit_code: i32,
        reason: String,
    },
    Stop(Stop),
    /// The pause is over.
    Due,
}

/// What holds for a program through all of its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    pub restart: Restart,
    /// From when it is asked to end until it is killed.
    pub grace_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a program that is {life:?}")]
pub(super) struct Illegal {
    life: Life,
    event: Event,
}

impl Life {
    pub fn is_end(&self) -> bool {
        match self {
            Self::Starting { .. }
            | Self::Running { .. }
            | Self::Stopping { .. }
            | Self::BackingOff { .. } => false,
            Self::Exited { .. } | Self::Stopped | Self::Interrupted | Self::Failed { .. } => true,
        }
    }

    /// The process that is alive.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Running { pid, .. } | Self::Stopping { pid, .. } => Some(*pid),
            Self::Starting { .. }
            | Self::BackingOff { .. }
            | Self::Exited { .. }
            | Self::Stopped
            | Self::Interrupted
            | Self::Failed { .. } => None,
        }
    }

    /// When there is something to do without anything happening.
    pub fn due(&self) -> Option<u64> {
        match self {
            Self::BackingOff { until, .. } => Some(*until),
            Self::Stopping { kill_at, .. } => Some(*kill_at),
            Self::Starting { .. }
            | Self::Running { .. }
            | Self::Exited { .. }
            | Self::Stopped
            | Self::Interrupted
            | Self::Failed { .. } => None,
        }
    }
}

impl Stop {
    pub(super) fn end(self) -> Life {
        match self {
            Self::Request => Life::Stopped,
            Self::Interrupt => Life::Interrupted,
        }
    }
}
