//! The reconciler: what is desired is ensured again and what nobody knows is removed, for ever.
//!
//! It looks at nothing itself. Per task with something desired it enqueues one `Settle` job, per
//! kind one `Sweep`, at low priority: an operation on what is as it should be changes nothing.

use std::time::Duration;

use rhizome_model::{
    AccountId, DeploymentId, Job, JobId, Name, Phase, Priority, Task, Version, Work, WorkloadKind,
    queue_name,
};
use rhizome_queue::{Queue, QueueError};
use rhizome_service::random;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(60);
const TIMEOUT_MS: u64 = 10 * 60 * 1000;

pub async fn run(queue: Queue, stop: CancellationToken) {
    // Rounds are told apart by the start of this process and their number.
    let start = uuid::Uuid::new_v4();
    for round in 0u64.. {
        match reconcile(&queue, &format!("{start} {round}"), round == 0).await {
            Ok(jobs) => tracing::debug!(jobs, "reconciles"),
            Err(error) => tracing::warn!(%error, "cannot reconcile; tries again"),
        }
        let pause = EVERY.mul_f64(0.9 + 0.2 * random::unit());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// At the first round after a start the machines may all be gone: that is not low priority.
async fn reconcile(queue: &Queue, round: &str, first: bool) -> Result<usize, QueueError> {
    let priority = if first { Priority::Normal } else { Priority::Low };
    let mut jobs: Vec<_> = queue
        .tasks()
        .await?
        .iter()
        .filter(|task| is_settled(task))
        .map(|task| settle(task, round, priority))
        .collect();
    jobs.extend(WorkloadKind::ALL.iter().map(|kind| sweep(*kind, round)));
    for some in jobs.chunks(128) {
        queue.submit(some).await?;
    }
    Ok(jobs.len())
}

/// A task that a job works on is left to that job.
fn is_settled(task: &Task) -> bool {
    matches!(task.phase, Phase::Ready | Phase::Failed) && !task.desired.resources.is_empty()
}

fn settle(task: &Task, round: &str, priority: Priority) -> Job {
    let work = Work::Settle;
    Job {
        id: JobId::derived(&task.deployment, task.version, &format!("settle {round}")),
        queue: queue_name(&work),
        account: task.deployment.account,
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        resource: None,
        priority,
        max_attempts: 3,
        timeout_ms: TIMEOUT_MS,
        parent: None,
        work,
    }
}

fn sweep(kind: WorkloadKind, round: &str) -> Job {
    let work = Work::Sweep { kind };
    Job {
        id: node_job_id(&format!("sweep {kind} {round}")),
        queue: queue_name(&work),
        account: NODE,
        deployment: None,
        version: None,
        resource: None,
        priority: Priority::Low,
        max_attempts: 3,
        timeout_ms: TIMEOUT_MS,
        parent: None,
        work,
    }
}

/// The node's own upkeep: no account of the ledger has the id 0.
const NODE: AccountId = AccountId(0);

fn node_job_id(what: &str) -> JobId {
    let name: Name = "upkeep".parse().expect("a constant that is a name");
    JobId::derived(&DeploymentId { account: NODE, name }, Version(0), what)
}
