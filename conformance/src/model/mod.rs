//! A backend that keeps everything in memory: the contract as the simplest program that keeps it.
//!
//! A job's state changes by [`JobState::step`](rhizome_model::JobState::step); set is only where it
//! begins, and that one whose others have ended still waits for its time. It can be given a
//! [`Flaw`], to see that the cases find it.

mod claim;
mod ends;
mod node;
mod seat;
mod state;

use async_trait::async_trait;

use crate::{Backend, Capability, Node};
use node::ModelNode;

/// A promise that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// What ended is taken in again.
    TakesAgain,
    /// An attempt that is no longer the job's can still end it.
    NoFence,
    /// An attempt that was given back counts.
    CountsReleases,
    /// Whoever came first is served first, whoever else waits.
    NoTurns,
    /// A deadline does not keep a job from starting.
    StartsLate,
    /// A pause holds up nothing.
    NoPause,
    /// A limit holds up nothing.
    NoLimits,
    /// All of an order may run.
    NoOrder,
    /// A cancelled job's children stay.
    KeepsChildren,
    /// A dead runner's attempt does not count.
    ForgivesDeath,
}

#[derive(Default)]
pub struct Model {
    flaw: Option<Flaw>,
}

impl Model {
    pub fn with(flaw: Flaw) -> Self {
        Self { flaw: Some(flaw) }
    }
}

#[async_trait]
impl Backend for Model {
    fn name(&self) -> String {
        self.flaw.map_or_else(|| "model".to_owned(), |flaw| format!("model with {flaw:?}"))
    }

    fn lacks(&self, capability: Capability) -> Option<String> {
        match capability {
            Capability::Outages => Some("it is no server, and keeps nothing on disk".into()),
            Capability::Tasks => Some("it keeps no tasks".into()),
            Capability::Remains => None,
        }
    }

    async fn start(&self, _: &[Capability]) -> anyhow::Result<Box<dyn Node>> {
        Ok(Box::new(ModelNode::new(self.flaw)))
    }
}
