//! One attempt of a job, from its lease to its end.
//!
//! ```text
//!   work ──────────────────────────────────────────────▶ it says itself how it ended
//!     │ cancelled, out of time, or the runner stops
//!     ▼
//!   told to stop ── within its grace ─▶ cancelled, timed out, or given back untried
//!     │ an operation that goes on all the same
//!     ▼
//!   the lease stays, the process ends: whoever started it kills what is left, then gives it back
//! ```
//!
//! The last is for calls of the system that cannot be broken off: nobody else may have the job while
//! one still changes something.

use std::time::{Duration, Instant};

use rhizome_model::{Action, Backoff, Code, Failure, Job, Outcome, Work};
use rhizome_queue::{CancelReason, Lease, QueueError, Retried};
use rhizome_service::random;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{DRAIN, Runner};

/// What was told to stop has stopped within this.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// A runner that stops itself has less.
pub(crate) const GRACE_OF_DRAIN: Duration = Duration::from_secs(3);
/// Between attempts of a script's job that ran out of time.
const OUT_OF_TIME: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// An operation goes on though it was told to stop.
#[derive(Debug)]
pub(crate) struct Hangs;

/// Why an attempt is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halt {
    Cancelled,
    TimedOut,
    /// The runner stops.
    Drained,
}

/// What tells an attempt to stop.
pub(crate) struct Limits {
    pub started: Instant,
    pub time: Duration,
    cancelled: CancellationToken,
    drain: CancellationToken,
    patience: Duration,
}

impl Limits {
    fn of(lease: &Lease, drain: CancellationToken) -> Self {
        Self {
            started: Instant::now(),
            time: Duration::from_millis(lease.job.timeout_ms),
            cancelled: lease.cancelled(),
            drain,
            patience: patience(&lease.job.work),
        }
    }

    /// Comes back when the attempt is to stop.
    pub async fn halt(&self) -> Halt {
        tokio::select! {
            () = self.cancelled.cancelled() => Halt::Cancelled,
            halt = self.halt_uncancelled() => halt,
        }
    }

    /// The same for what sees to its cancellation itself.
    pub async fn halt_uncancelled(&self) -> Halt {
        let drained = async {
            self.drain.cancelled().await;
            tokio::time::sleep(self.patience).await;
        };
        tokio::select! {
            () = tokio::time::sleep(self.time.saturating_sub(self.started.elapsed())) => Halt::TimedOut,
            () = drained => Halt::Drained,
        }
    }

    pub fn out_of_time(&self) -> Failure {
        let message = format!("it took longer than {} ms and was stopped", self.time.as_millis());
        Failure::new(Code::TimedOut, message)
    }
}

impl Runner {
    /// Does one job and says how it ended. Losing the lease is no error: another has the job.
    pub(crate) async fn attempt(
        &self,
        lease: Lease,
        drain: CancellationToken,
    ) -> Result<(), Hangs> {
        let span = span(&lease);
        async {
            let limits = Limits::of(&lease, drain);
            let done = match &lease.job.work {
                Work::Script | Work::Settle | Work::Teardown => {
                    Ok(self.script(&lease, &limits).await)
                }
                Work::Ensure { .. }
                | Work::Keep { .. }
                | Work::Observe { .. }
                | Work::Delete { .. }
                | Work::Act { .. }
                | Work::Sweep { .. } => self.operation(&lease, &limits).await,
            };
            let duration_ms = limits.started.elapsed().as_millis();
            match done {
                Ok(Ok(())) => tracing::debug!(duration_ms, "done"),
                Ok(Err(QueueError::Fenced)) => {
                    tracing::info!(duration_ms, "the lease is lost; another attempt has it");
                }
                Ok(Err(error)) => tracing::warn!(%error, "could not say how it ended"),
                Err(Hangs) => {
                    tracing::error!(duration_ms, "goes on though it was told to stop");
                    // Dropped, it would be given back at once.
                    std::mem::forget(lease);
                    return Err(Hangs);
                }
            }
            Ok(())
        }
        .instrument(span)
        .await
    }

    /// A script's job can be left wherever it waits: what it began is in the queue.
    async fn script(&self, lease: &Lease, limits: &Limits) -> Result<(), QueueError> {
        let stop = lease.cancelled().child_token();
        let mut work = std::pin::pin!(self.script_job(lease, &stop));
        let halt = tokio::select! {
            result = &mut work => return requested(lease, result).await,
            halt = limits.halt_uncancelled() => halt,
        };
        if halt == Halt::Drained {
            return lease.release().await;
        }
        stop.cancel();
        if let Ok(Ok(())) = tokio::time::timeout(GRACE, work).await {
            return Ok(());
        }
        let delay = random::jittered(OUT_OF_TIME, lease.attempt);
        let failure = limits.out_of_time();
        if lease.retry(&failure, delay, &[]).await? == Retried::Exhausted {
            tracing::error!(error = %failure, "gave up; it stays as it is");
        }
        Ok(())
    }
}

/// Work that broke off because somebody cancelled it was cancelled, not lost.
async fn requested(lease: &Lease, result: Result<(), QueueError>) -> Result<(), QueueError> {
    match result {
        Err(QueueError::Fenced) if lease.cancel_reason() == Some(CancelReason::Requested) => {
            lease.finish(&Outcome::Cancelled).await
        }
        result => result,
    }
}

/// What every line that is logged meanwhile carries.
fn span(lease: &Lease) -> tracing::Span {
    let Job { id, queue, trace, .. } = &lease.job;
    let trace_id = trace.as_ref().map(tracing::field::display);
    tracing::info_span!("attempt", job = %id, %queue, attempt = lease.attempt, trace_id)
}

/// How long a drain waits for it. A log that is followed has no end to wait for.
fn patience(work: &Work) -> Duration {
    match work {
        Work::Act { action: Action::Logs { follow: true, .. }, .. } => Duration::ZERO,
        _ => DRAIN,
    }
}
