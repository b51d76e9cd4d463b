//! Resizing: a field of a spec gets another value, and with it what is desired and reserved.
//!
//! ```text
//!   reserve what is more ─▶ make it so ─▶ desired and reserved as they are from now on
//!                              └─ failed ─▶ give back what is more
//! ```
//!
//! Each step may be repeated, and a node that stops between two of them comes to the end of the
//! third when the job is done again. The resizes of one deployment are done one after the other.

use rhizome_model::{
    Capacity, Code, DesiredResource, Done, Event, Failure, Name, ResourceId, Task, What,
    WorkloadKind,
};
use rhizome_queue::{Lease, QueueError};
use rhizome_service::clock;
use serde_json::{Map, Value};

use crate::Runner;
use crate::operation::Trouble;

impl Runner {
    /// Answers the status.
    pub(crate) async fn resize(
        &self,
        lease: &Lease,
        kind: WorkloadKind,
        id: &ResourceId,
        to: &Map<String, Value>,
    ) -> Result<Value, Trouble> {
        let task = self.queue.task(&id.deployment_id()).await?;
        let mut task = task.filter(|t| Some(t.version) == lease.job.version).ok_or_else(moved)?;
        // What a script under way does with what it declares is in its journal.
        if lease.job.parent.is_none() && !task.phase.is_settled() {
            return Err(moved().into());
        }
        let held = task.held().into_iter().find(|r| r.name == id.name && r.kind == kind);
        let spec = kind.resized(&held.ok_or_else(|| gone(id))?.spec, to)?;
        if lease.job.parent.is_some() {
            return self.apply(lease, kind, id, &spec).await;
        }
        let next = resized(&task, &id.name, &spec)?;
        let during = task.reserved.saturating_add(next.reserved.saturating_sub(task.reserved));
        if during != task.reserved {
            let more = Task { reserved: during, ..task.clone() };
            self.reserve(lease, &more).await?;
        }
        match self.apply(lease, kind, id, &spec).await {
            Ok(status) => {
                lease.update(&next, &[]).await.map_err(refusal)?;
                Ok(status)
            }
            Err(trouble) => {
                if during != task.reserved {
                    task.updated_at = clock::now_ms();
                    lease.update(&task, &[]).await.map_err(refusal)?;
                }
                Err(trouble)
            }
        }
    }

    async fn reserve(&self, lease: &Lease, more: &Task) -> Result<(), Trouble> {
        loop {
            match lease.update(more, &[]).await {
                Err(QueueError::Beyond(beyond)) => {
                    self.allowances.raise(more.deployment.account, &beyond).await?;
                }
                reserved => return Ok(reserved.map_err(refusal)?),
            }
        }
    }

    async fn apply(
        &self,
        lease: &Lease,
        kind: WorkloadKind,
        id: &ResourceId,
        spec: &Value,
    ) -> Result<Value, Trouble> {
        let spec = self.unsealer.open(id, spec).await?;
        let ensured = self.workload(kind)?.ensure(id, &spec).await?;
        let events = told(lease, kind, id, &ensured.status, ensured.done);
        let status = Some(&ensured.status);
        lease.set_status(&id.deployment_id(), &id.name, status, &events).await?;
        Ok(ensured.status)
    }
}

/// The task as it is afterwards.
fn resized(task: &Task, name: &Name, spec: &Value) -> Result<Task, Failure> {
    let mut next = task.clone();
    for resource in next.desired.resources.iter_mut().filter(|r| &r.name == name) {
        resource.spec = spec.clone();
    }
    let demands = next.desired.resources.iter().map(DesiredResource::demand);
    next.reserved = Capacity::total(demands.collect::<Result<Vec<_>, _>>()?);
    next.updated_at = clock::now_ms();
    Ok(next)
}

fn told(
    lease: &Lease,
    kind: WorkloadKind,
    id: &ResourceId,
    status: &Value,
    done: Done,
) -> Vec<Event> {
    let Some(version) = lease.job.version else { return Vec::new() };
    let (resource, status, done) = (id.name.clone(), status.clone(), Some(done));
    vec![Event {
        at: clock::now_ms(),
        deployment: id.deployment_id(),
        version,
        node: None,
        what: What::Ready { resource, kind, status, done },
    }]
}

fn moved() -> Failure {
    let message = "a version is under way that may say something else: wait for its end, and resize \
                   again if that is still wanted";
    Failure::new(Code::Conflict, message)
}

fn gone(id: &ResourceId) -> Failure {
    Failure::new(Code::NotFound, format!("there is no resource {id} here"))
}

fn refusal(error: QueueError) -> Failure {
    match error {
        QueueError::Shortfall(shortfall) => {
            let message = format!("the node is too full: {shortfall}");
            Failure::new(Code::InsufficientCapacity, message)
        }
        QueueError::Fenced => moved(),
        other => other.into(),
    }
}
