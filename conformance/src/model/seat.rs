//! Runners and leases of the model.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rhizome_model::api::OutputChunk;
use rhizome_model::{Failure, Job, Outcome};
use rhizome_queue::{CancelReason, Retried};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::claim::Claimed;
use super::node::Shared;
use crate::{Lease, Result, Runner, Seat};

pub(super) struct ModelRunner {
    pub(super) shared: Arc<Shared>,
    pub(super) seat: Seat,
    pub(super) drain: CancellationToken,
    /// There while it lives.
    pub(super) alive: Arc<()>,
}

#[async_trait]
impl Runner for ModelRunner {
    async fn next(&mut self) -> Option<Box<dyn Lease>> {
        // Handed over in the step in which it is claimed: nothing is lost when this is dropped.
        let claim = self.shared.when(|state| state.claim(&self.seat).ok().flatten());
        let claimed = tokio::select! {
            biased;
            () = self.drain.cancelled() => return None,
            claimed = claim => claimed,
        };
        let (shared, alive) = (self.shared.clone(), Arc::downgrade(&self.alive));
        Some(Box::new(ModelLease { shared, claimed, alive }))
    }

    fn drain(&self) {
        self.drain.cancel();
    }

    async fn close(self: Box<Self>) {
        self.drain.cancel();
        self.shared.change(|state| {
            for (id, lease) in state.held_by(&self.seat.name) {
                // It is there: the list was made in this step.
                let _ = state.release(id, lease);
            }
            state.runners.remove(&self.seat.name);
        });
    }
}

struct ModelLease {
    shared: Arc<Shared>,
    claimed: Claimed,
    alive: Weak<()>,
}

#[async_trait]
impl Lease for ModelLease {
    fn job(&self) -> &Job {
        &self.claimed.job
    }

    fn attempt(&self) -> u32 {
        self.claimed.attempt
    }

    async fn stopped(&self) -> CancelReason {
        let Claimed { job, number, .. } = &self.claimed;
        let reason = self.shared.when(|state| match state.entry(job.id) {
            Ok(entry) if entry.is_held_by(*number) => {
                entry.cancel_asked.then_some(CancelReason::Requested)
            }
            Ok(_) | Err(_) => Some(CancelReason::Lost),
        });
        reason.await
    }

    async fn finish(&self, outcome: &Outcome) -> Result<()> {
        let Claimed { job, number, .. } = &self.claimed;
        self.shared.change(|state| state.finish(job.id, *number, outcome.clone()))
    }

    async fn retry(&self, failure: &Failure, after: Duration) -> Result<Retried> {
        let Claimed { job, number, .. } = &self.claimed;
        self.shared.change(|state| state.retry(job.id, *number, failure, after))
    }

    async fn release(&self) -> Result<()> {
        let Claimed { job, number, .. } = &self.claimed;
        self.shared.change(|state| state.release(job.id, *number))
    }

    async fn print(&self, chunk: &OutputChunk) -> Result<()> {
        let Claimed { job, number, .. } = &self.claimed;
        self.shared.change(|state| {
            state.held(job.id, *number)?.print(chunk.clone());
            Ok(())
        })
    }

    async fn progress(&self, value: &Value) -> Result<()> {
        let Claimed { job, number, .. } = &self.claimed;
        self.shared.change(|state| {
            state.held(job.id, *number)?.progress = Some(value.clone());
            Ok(())
        })
    }
}

impl Drop for ModelLease {
    fn drop(&mut self) {
        if self.alive.strong_count() > 0 {
            let Claimed { job, number, .. } = &self.claimed;
            // One that is not the job's any more changes nothing.
            let _ = self.shared.change(|state| state.abandon(job.id, *number));
        }
    }
}
