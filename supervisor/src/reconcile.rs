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
    let mut jobs = Vec::new();
    for task in queue.tasks().await? {
        let working = match queue.job(task.job).await? {
            Some(record) => !record.state.is_ended(),
            None => false,
        };
        if let Some(work) = due(&task, working) {
            jobs.push(upkeep(&task, work, round, priority));
        }
    }
    jobs.extend(WorkloadKind::ALL.iter().map(|kind| sweep(*kind, round)));
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
        Phase::Accepted | Phase::Running if !working => Some(Work::Script),
        Phase::Deleting if !working => Some(Work::Teardown),
        Phase::Accepted | Phase::Running | Phase::Deleting => None,
        Phase::Pending | Phase::Refused | Phase::Deleted => None,
    }
}

fn upkeep(task: &Task, work: Work, round: &str, priority: Priority) -> Job {
    let id = JobId::derived(&task.deployment, task.version, &format!("upkeep {round}"));
    Job {
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        priority,
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
                Phase::Accepted | Phase::Running => Some(Work::Script),
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
