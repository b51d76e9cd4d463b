//! A runner: takes jobs of its queues, one lease at a time per slot, and does them.
//!
//! ```text
//!            ┌─ Script, Settle, Teardown ─▶ script/   evaluates; makes operation jobs, waits for them
//!  lease ────┤
//!            └─ Ensure, Delete, Act, … ───▶ operation  calls the SAL
//! ```
//!
//! A runner owns nothing: whatever it was doing when it died is done again by another, from what
//! the queue holds. It must not know a Redis key, nor how a workload is made.

mod operation;
mod script;
mod sealed;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rhizome_engine::{SandboxOptions, Sandboxes};
use rhizome_model::{Action, Failure, Limits, NodeFacts, Outcome, Work};
use rhizome_queue::{Lease, Queue, QueueConfig, QueueError, RunnerOptions};
use rhizome_sal::Sal;
use rhizome_service::Shutdown;

pub use sealed::Unsealer;

/// Jobs under way are waited for this long when a runner stops; then they are given back.
const DRAIN: Duration = Duration::from_secs(20);
/// Giving back takes no longer than this.
const GIVE_BACK: Duration = Duration::from_secs(5);
/// Evaluating processes that wait, started, for a script.
const WARM_SANDBOXES: usize = 1;

pub struct RunnerConfig {
    /// Unique per start.
    pub name: String,
    pub queue: QueueConfig,
    pub queues: Vec<String>,
    /// Jobs at a time.
    pub slots: usize,
    pub facts: NodeFacts,
    /// What evaluates a script: a program and its arguments.
    pub sandbox: (PathBuf, Vec<String>),
    pub limits: Limits,
    /// The socket of the node's identity manager, which opens secrets.
    pub identity: Option<PathBuf>,
    /// How this node makes workloads; a runner of scripts alone needs none.
    pub sal: Option<Sal>,
}

/// What every job of this process shares.
struct Runner {
    queue: Queue,
    facts: NodeFacts,
    limits: Limits,
    sandboxes: Option<Sandboxes>,
    unsealer: Unsealer,
    sal: Option<Sal>,
}

/// Works until told to stop; jobs under way are finished or given back.
pub async fn run(config: RunnerConfig, shutdown: Shutdown) -> Result<(), Failure> {
    let queue = Queue::connect(&config.queue).await?;
    let scripts = config.queues.iter().any(|q| q == rhizome_model::SCRIPT_QUEUE);
    let (program, args) = config.sandbox;
    let options = SandboxOptions { program, args, warm: WARM_SANDBOXES, uid_gid: None };
    let runner = Arc::new(Runner {
        sandboxes: scripts.then(|| Sandboxes::new(options)),
        queue: queue.clone(),
        facts: config.facts,
        limits: config.limits,
        unsealer: Unsealer::new(config.identity)?,
        sal: config.sal,
    });
    let options = RunnerOptions {
        name: config.name.clone(),
        queues: config.queues,
        slots: config.slots,
        ..Default::default()
    };
    let mut source = queue.runner(options).await?;
    tracing::info!(runner = %config.name, "takes jobs");

    loop {
        let lease = tokio::select! {
            lease = source.next() => lease,
            () = shutdown.requested() => break,
        };
        let Some(lease) = lease else { break };
        let runner = runner.clone();
        let stop = shutdown.token.clone();
        shutdown.tracker.spawn(async move { runner.work(lease, stop).await });
    }
    source.drain();
    if !shutdown.finish(DRAIN + GIVE_BACK).await {
        tracing::warn!(runner = %config.name, "stops before everything was given back");
    }
    source.close().await;
    Ok(())
}

impl Runner {
    /// Does one job and says how it ended. Losing the lease is no error: another has the job.
    async fn work(&self, lease: Lease, stop: tokio_util::sync::CancellationToken) {
        let job = lease.job.clone();
        let started = std::time::Instant::now();
        let limit = Duration::from_millis(job.timeout_ms);
        let work = async {
            match &job.work {
                Work::Script | Work::Settle | Work::Teardown => self.script_job(&lease).await,
                Work::Ensure { .. }
                | Work::Observe { .. }
                | Work::Delete { .. }
                | Work::Act { .. }
                | Work::Sweep { .. } => self.operation(&lease, limit).await,
            }
        };
        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(patience(&job.work)).await;
        };
        let result = tokio::select! {
            result = work => result,
            () = drained => lease.release().await,
        };
        let (attempt, duration_ms) = (lease.attempt, started.elapsed().as_millis());
        match result {
            Ok(()) => tracing::debug!(job = %job.id, attempt, duration_ms, "done"),
            Err(QueueError::Fenced) => {
                tracing::info!(job = %job.id, attempt, "the lease is lost; another attempt has it");
            }
            Err(error) => {
                tracing::warn!(job = %job.id, attempt, %error, "could not say how it ended")
            }
        }
    }
}

/// How long a drain waits for it. A log that is followed has no end to wait for.
fn patience(work: &Work) -> Duration {
    match work {
        Work::Act { action: Action::Logs { follow: true, .. }, .. } => Duration::ZERO,
        _ => DRAIN,
    }
}

/// The outcome of a result.
fn outcome(result: Result<serde_json::Value, Failure>) -> Outcome {
    match result {
        Ok(value) => Outcome::Succeeded(value),
        Err(failure) => Outcome::Failed(failure),
    }
}
