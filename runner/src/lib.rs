//! A runner: takes jobs of its queues, one lease at a time per slot, and does them.
//!
//! ```text
//!            ┌─ Script, Settle, Teardown ─▶ script/   evaluates; makes operation jobs, waits for them
//!  lease ────┤
//!            ├─ Ensure, Delete, Act, … ───▶ operation  calls the SAL
//!            └─ Keep ─────────────────────▶ keep       looks, puts right, tells
//! ```
//!
//! A runner owns nothing: whatever it was doing when it died is done again by another, from what
//! the queue holds. It must not know a Redis key, nor how a workload is made.

mod allowance;
mod attempt;
mod data;
mod keep;
mod operation;
mod resize;
mod script;
mod sealed;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rhizome_engine::{SandboxOptions, Sandboxes};
use rhizome_model::{Code, Failure, Limits, NodeFacts, Outcome, WorkloadKind};
use rhizome_queue::{Queue, QueueConfig, RunnerOptions};
use rhizome_sal::Sal;
use rhizome_service::{Client, Shutdown};
use tokio_util::sync::CancellationToken;

use allowance::Allowances;
use sealed::Unsealer;

use attempt::Hangs;

/// Jobs under way are waited for this long when a runner stops; then they are given back.
const DRAIN: Duration = Duration::from_secs(20);
/// Giving back takes no longer than this.
const GIVE_BACK: Duration = Duration::from_secs(5);

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
    /// Where outcomes wait that the queue cannot take.
    pub spool: Option<PathBuf>,
    /// The socket of the node's identity manager, which opens secrets and speaks with the ledger.
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
    allowances: Allowances,
    sal: Option<Sal>,
}

/// Works until told to stop; jobs under way are finished or given back.
pub async fn run(config: RunnerConfig, shutdown: Shutdown) -> Result<(), Failure> {
    // While redis-server is away, what is under way goes on and waits for it.
    let queue = Queue::connect(&config.queue).await?.patient();
    let scripts = config.queues.iter().any(|q| q == rhizome_model::SCRIPT_QUEUE);
    let (program, args) = config.sandbox;
    let options = SandboxOptions { program, args, uid_gid: None };
    let manager = config.identity.map(|s| Client::unix("the identity manager", s)).transpose()?;
    let runner = Arc::new(Runner {
        sandboxes: scripts.then(|| Sandboxes::new(options)),
        queue: queue.clone(),
        facts: config.facts,
        limits: config.limits,
        unsealer: Unsealer::new(manager.clone()),
        allowances: Allowances::new(queue.clone(), manager),
        sal: config.sal,
    });
    for kind in WorkloadKind::ALL.iter().filter(|k| config.queues.contains(&k.to_string())) {
        shutdown.tracker.spawn(runner.clone().watch(*kind, shutdown.token.clone()));
    }
    let options = RunnerOptions {
        name: config.name.clone(),
        queues: config.queues,
        slots: config.slots,
        spool: config.spool,
        ..Default::default()
    };
    let mut source = queue.runner(options).await?;
    tracing::info!(runner = %config.name, "takes jobs");

    let hangs = CancellationToken::new();
    loop {
        let lease = tokio::select! {
            lease = source.next() => lease,
            () = shutdown.requested() => break,
            () = hangs.cancelled() => break,
        };
        let Some(lease) = lease else { break };
        let (runner, stop, hangs) = (runner.clone(), shutdown.token.clone(), hangs.clone());
        shutdown.tracker.spawn(async move {
            if let Err(Hangs) = runner.attempt(lease, stop).await {
                hangs.cancel();
            }
        });
    }
    source.drain();
    if !shutdown.finish(DRAIN + GIVE_BACK).await {
        tracing::warn!(runner = %config.name, "stops before everything was given back");
    }
    if hangs.is_cancelled() {
        // Its job must not be another's while it goes on: whoever started us kills what is left.
        let message = "an operation goes on though it was told to stop; this process must end";
        return Err(Failure::new(Code::TimedOut, message));
    }
    source.close().await;
    Ok(())
}

/// The outcome of a result.
fn outcome(result: Result<serde_json::Value, Failure>) -> Outcome {
    match result {
        Ok(value) => Outcome::Succeeded(value),
        Err(failure) => Outcome::Failed(failure),
    }
}
