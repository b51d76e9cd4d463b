//! The life of a task, and of a deployment: the same words on the node and at coord.
//!
//! ```text
//!  pending ─Accept▶ accepted ─Start▶ running ─Succeed▶ ready ─Supersede▶ accepted (next version)
//!     │                │                │
//!   Refuse           Fail             Fail
//!     ▼                ▼                ▼
//!  refused          failed ◀────────────┤
//!                      ▲               Stick
//!                    Fail                ▼
//!                      └────────── rollback_stuck
//!
//!  any but deleted ─Delete▶ deleting ─Gone▶ deleted
//! ```

use serde::{Deserialize, Serialize};

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
pub enum Phase {
    /// coord holds it; the node has not answered yet.
    Pending,
    /// The node holds it and has reserved what it takes.
    Accepted,
    /// Its script is evaluated.
    Running,
    /// It failed, and going back does not succeed either: that is tried again until it does.
    RollbackStuck,
    /// Everything that it declares is there.
    Ready,
    /// It failed; what is left of it is what its policy says.
    Failed,
    /// The node said no; nothing was changed.
    Refused,
    Deleting,
    Deleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Move {
    Accept,
    Refuse,
    Start,
    Succeed,
    Fail,
    /// What it changed cannot be undone, for now.
    Stick,
    /// A newer version takes its place.
    Supersede,
    Delete,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a deployment that is {phase:?} cannot {step:?}")]
pub struct IllegalMove {
    pub phase: Phase,
    pub step: Move,
}

impl Phase {
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Accepted,
        Self::Running,
        Self::RollbackStuck,
        Self::Ready,
        Self::Failed,
        Self::Refused,
        Self::Deleting,
        Self::Deleted,
    ];

    /// Whether nothing more happens by itself.
    pub fn is_settled(self) -> bool {
        match self {
            Self::Ready | Self::Failed | Self::Refused | Self::Deleted => true,
            Self::Pending
            | Self::Accepted
            | Self::Running
            | Self::RollbackStuck
            | Self::Deleting => false,
        }
    }

    /// The one place that says which move leads where.
    pub fn step(self, step: Move) -> Result<Self, IllegalMove> {
        let next = match (self, step) {
            (Self::Pending, Move::Accept) => Self::Accepted,
            (Self::Pending, Move::Refuse) => Self::Refused,
            (Self::Pending | Self::Accepted | Self::Running | Self::RollbackStuck, Move::Fail) => {
                Self::Failed
            }
            (Self::Running, Move::Stick) => Self::RollbackStuck,
            (Self::Accepted, Move::Start) => Self::Running,
            (Self::Running, Move::Succeed) => Self::Ready,
            (Self::Ready | Self::Failed | Self::Refused | Self::Deleted, Move::Supersede) => {
                Self::Pending
            }
            (
                Self::Pending
                | Self::Accepted
                | Self::Running
                | Self::RollbackStuck
                | Self::Ready
                | Self::Failed
                | Self::Refused,
                Move::Delete,
            ) => Self::Deleting,
            (Self::Deleting, Move::Gone) => Self::Deleted,
            (
                Self::Pending,
                Move::Start | Move::Succeed | Move::Stick | Move::Supersede | Move::Gone,
            )
            | (
                Self::Accepted,
                Move::Accept
                | Move::Refuse
                | Move::Succeed
                | Move::Stick
                | Move::Supersede
                | Move::Gone,
            )
            | (
                Self::RollbackStuck,
                Move::Accept
                | Move::Refuse
                | Move::Start
                | Move::Succeed
                | Move::Stick
                | Move::Supersede
                | Move::Gone,
            )
            | (
                Self::Running,
                Move::Accept | Move::Refuse | Move::Start | Move::Supersede | Move::Gone,
            )
            | (
                Self::Ready | Self::Failed | Self::Refused,
                Move::Accept
                | Move::Refuse
                | Move::Start
                | Move::Succeed
                | Move::Fail
                | Move::Stick
                | Move::Gone,
            )
            | (
                Self::Deleting,
                Move::Accept
                | Move::Refuse
                | Move::Start
                | Move::Succeed
                | Move::Fail
                | Move::Stick
                | Move::Supersede
                | Move::Delete,
            )
            | (
                Self::Deleted,
                Move::Accept
                | Move::Refuse
                | Move::Start
                | Move::Succeed
                | Move::Fail
                | Move::Stick
                | Move::Delete
                | Move::Gone,
            ) => return Err(IllegalMove { phase: self, step }),
        };
        Ok(next)
    }

    /// What several nodes' phases amount to: the one that needs attention first.
    pub fn overall(phases: impl IntoIterator<Item = Self>) -> Option<Self> {
        const ORDER: [Phase; 9] = [
            Phase::Deleting,
            Phase::RollbackStuck,
            Phase::Running,
            Phase::Accepted,
            Phase::Pending,
            Phase::Refused,
            Phase::Failed,
            Phase::Ready,
            Phase::Deleted,
        ];
        phases.into_iter().min_by_key(|p| ORDER.iter().position(|o| o == p))
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::RollbackStuck => "rollback_stuck",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOVES: [Move; 9] = [
        Move::Accept,
        Move::Refuse,
        Move::Start,
        Move::Succeed,
        Move::Fail,
        Move::Stick,
        Move::Supersede,
        Move::Delete,
        Move::Gone,
    ];

    proptest! {
        #[test]
        fn whatever_happens_it_can_be_deleted(moves in proptest::collection::vec(0..MOVES.len(), 0..20)) {
            let mut phase = Phase::Pending;
            for m in moves {
                phase = phase.step(MOVES[m]).unwrap_or(phase);
            }
            if phase != Phase::Deleted {
                if phase != Phase::Deleting {
                    phase = phase.step(Move::Delete).unwrap();
                }
                prop_assert_eq!(phase.step(Move::Gone), Ok(Phase::Deleted));
            }
        }

        #[test]
        fn unsettled_work_decides_the_whole(a in 0..Phase::ALL.len(), b in 0..Phase::ALL.len()) {
            let (a, b) = (Phase::ALL[a], Phase::ALL[b]);
            let overall = Phase::overall([a, b]).unwrap();
            prop_assert_eq!(overall.is_settled(), a.is_settled() && b.is_settled());
        }
    }
}
