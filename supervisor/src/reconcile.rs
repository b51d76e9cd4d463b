//! The reconciler: what is desired is kept so and what nobody knows is removed, for ever.
//!
//! It looks at nothing itself. Per task with something desired it enqueues one `Settle` job, per
//! kind one `Sweep`, at low priority: who does them looks first, and acts on what differs. What a
//! machine comes to by itself is noticed at once by the runners of its kind.

use std::time::Duration;

use rhizome_model::{
    AccountId, DeploymentId, Job, JobId, Name, Phase, Priority, Task, Version, Work, WorkloadKind,
    queue_name,
};
use rhizome_queue::{Queue, QueueError};
use rhizome_service::random;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(60);
/// After a round that redis-server could not take.
const AGAIN: Duration = Duration::from_secs(2);
const TIMEOUT_MS: u64 = 10 * 60 * 1000;

pub async fn run(queue: Queue, stop: CancellationToken) {
    // Rounds are told apart by the start of this process and their number.
    let start = uuid::Uuid::new_v4();
    let mut first = true;
    for round in 0u64.. {
        let pause = match reconcile(&queue, &format!("{start} {round}"), first).await {
            Ok(jobs) => {
                tracing::debug!(jobs, "reconciles");
                first = false;
                EVERY.mul_f64(0.9 + 0.2 * random::unit())
            }
            Err(error) => {
                tracing::warn!(%error, "cannot reconcile; tries again");
                AGAIN
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// At the first round after a start the machines may all be gone: that is not low priority, and it
/// does not wait for what an earlier supervisor has asked for.
async fn reconcile(queue: &Queue, round: &str, first: bool) -> Result<usize, QueueError> {
    let priority = if first { Priority::Normal } else { Priority::Low };
    let mut jobs = Vec::new();
    for task in queue.tasks().await? {
        let working = match queue.job(task.job).await? {
            Some(record) => !record.state.is_ended(),
            None => false,
        };
        if let Some(work) = due(&task, working) {
            jobs.push(Job { priority, ..upkeep(&task, work, round) });
        }
    }
    jobs.extend(WorkloadKind::ALL.iter().map(|kind| sweep(*kind, round)));
    if !first {
        // Who is not through with the last round needs no second one beside it.
        jobs.iter_mut().for_each(|job| job.unique = Some(unique(job)));
    }
    for some in jobs.chunks(128) {
        queue.submit(some).await?;
    }
    Ok(jobs.len())
}

/// What a task needs done. One that a job works on is left to that job; one whose job was set aside
/// before it came to an end would otherwise stay as it is for ever.
fn due(task: &Task, working: bool) -> Option<Work> {
    match task.phase {
        Phase::Ready | Phase::Failed if task.desired.resources.is_empty() => None,
        Phase::Ready | Phase::Failed => Some(Work::Settle),
        Phase::Accepted | Phase::Running | Phase::RollbackStuck if !working => Some(Work::Script),
        Phase::Deleting if !working => Some(Work::Teardown),
        Phase::Accepted | Phase::Running | Phase::RollbackStuck | Phase::Deleting => None,
        Phase::Pending | Phase::Refused | Phase::Deleted => None,
    }
}

fn unique(job: &Job) -> String {
    let about = job.deployment.as_ref().map_or_else(|| job.queue.clone(), ToString::to_string);
    format!("upkeep {} {about}", job.work.word())
}

fn upkeep(task: &Task, work: Work, round: &str) -> Job {
    let id = JobId::derived(&task.deployment, task.version, &format!("upkeep {round}"));
    Job {
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        timeout_ms: TIMEOUT_MS,
        ..Job::new(id, queue_name(&work), task.deployment.account, work)
    }
}

fn sweep(kind: WorkloadKind, round: &str) -> Job {
    let work = Work::Sweep { kind };
    let id = node_job_id(&format!("sweep {kind} {round}"));
    Job {
        priority: Priority::Low,
        timeout_ms: TIMEOUT_MS,
        ..Job::new(id, queue_name(&work), NODE, work)
    }
}

/// The node's own upkeep: no account of the ledger has the id 0.
const NODE: AccountId = AccountId(0);

fn node_job_id(what: &str) -> JobId {
    let name: Name = "upkeep".parse().expect("a constant that is a name");
    JobId::derived(&DeploymentId { account: NODE, name }, Version(0), what)
}

#[cfg(test)]
mod tests {
    use rhizome_model::{Desired, DesiredResource};

    use super::*;

    #[test]
    fn a_task_is_settled_left_alone_or_taken_up_again() {
        let mut task = Task::new("1/demo".parse().unwrap(), Version(1), JobId([0; 16]));
        let kept = DesiredResource {
            name: "data".parse().unwrap(),
            kind: WorkloadKind::ALL[0],
            spec: serde_json::json!({ "size": 1 << 20 }),
            line: 1,
        };
        for phase in Phase::ALL {
            task.phase = phase;
            task.desired = Desired::default();
            let taken_up = match phase {
                Phase::Accepted | Phase::Running | Phase::RollbackStuck => Some(Work::Script),
                Phase::Deleting => Some(Work::Teardown),
                _ => None,
            };
            assert_eq!(due(&task, false), taken_up, "{phase}");
            assert_eq!(due(&task, true), None, "{phase}");
            task.desired.resources = vec![kept.clone()];
            let settles = matches!(phase, Phase::Ready | Phase::Failed);
            assert_eq!(due(&task, true), settles.then_some(Work::Settle), "{phase}");
        }
    }
}
