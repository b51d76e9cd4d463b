//! What others see of tasks, queues and jobs.

use std::collections::BTreeMap;

use rhizome_model::api::{
    AccountQueueView, AttemptView, JobView, QueueView, ResourceView, TaskView,
};
use rhizome_model::secret::mask;
use rhizome_model::{DesiredResource, Envelope, Name, NodeId, Outcome, Phase, Task, TraceId};
use rhizome_queue::{JobRecord, QueueStats};
use serde_json::Value;

/// While a version is under way its declarations are shown, and what is kept beside them.
pub fn task(task: &Task, node: NodeId, statuses: &BTreeMap<Name, Value>) -> TaskView {
    let resource = |r: &&DesiredResource| ResourceView {
        resource: DesiredResource { spec: mask(&r.spec), ..(*r).clone() },
        status: statuses.get(&r.name).cloned(),
    };
    // While it runs, a failure is that of an undoing under way.
    let failure = match task.phase {
        Phase::Failed | Phase::Refused => task.failure.clone(),
        Phase::RollbackStuck => task.stuck.clone(),
        _ => None,
    };
    let waiting_for = match (&task.failure, task.phase) {
        (Some(cause), Phase::Running | Phase::RollbackStuck) => {
            Some(format!("goes back to the version before: {cause}"))
        }
        _ => None,
    };
    TaskView {
        deployment: task.deployment.clone(),
        version: task.version,
        node,
        phase: task.phase,
        failure,
        outputs: task.outputs.clone(),
        resources: task.held().iter().map(resource).collect(),
        reserved: task.reserved,
        waiting_for,
    }
}

/// The trace of the envelope that a task is made of.
pub fn trace(task: &Task) -> Option<TraceId> {
    let envelope = Envelope::from_json(task.envelope.as_bytes()).ok()?;
    Some(TraceId::of_payload(&envelope.payload))
}

pub fn queue(stats: QueueStats, node: NodeId, rate_per_s: f64) -> QueueView {
    let accounts = stats.accounts.into_iter().map(|a| AccountQueueView {
        account: a.account,
        ready: a.ready,
        running: a.running,
        ended: a.ended,
    });
    QueueView {
        node,
        queue: stats.queue,
        mode: stats.mode,
        slots: stats.slots,
        ready: stats.ready,
        running: stats.running,
        delayed: stats.delayed,
        retrying: stats.retrying,
        waiting: stats.waiting,
        dead: stats.dead,
        oldest_ms: stats.oldest_ms,
        rate_per_s,
        ended: stats.ended,
        accounts: accounts.collect(),
    }
}

pub fn job(record: JobRecord, node: NodeId, log: Vec<String>) -> JobView {
    let job = record.job;
    let (result, failed) = match record.outcome {
        Some(Outcome::Succeeded(value)) => (Some(value), None),
        Some(Outcome::Failed(failure)) => (None, Some(failure)),
        Some(Outcome::Cancelled) | None => (None, None),
    };
    let attempts = record.history.into_iter().map(|a| AttemptView {
        number: a.number,
        runner: a.runner,
        started_at: a.started_at,
        ended_at: a.ended_at,
        end: a.end,
        failure: a.failure,
    });
    JobView {
        node,
        id: job.id,
        work: job.work.word().into(),
        queue: job.queue,
        account: job.account,
        deployment: job.deployment,
        resource: job.resource,
        state: record.state,
        submitted_at: record.submitted_at,
        ended_at: record.ended_at,
        trace: job.trace,
        parent: job.parent,
        again: job.again,
        waits_for: record.waits_for,
        attempts: attempts.collect(),
        progress: record.progress,
        result,
        // Of a job that succeeded, why it did not at first is in its attempts.
        failure: failed.or(record.failure.filter(|_| !record.state.is_ended())),
        log,
    }
}
