//! Keeping what is desired: each resource is looked at, put right where it differs, and told of.
//!
//! ```text
//!   every minute: Settle ─▶ one Keep job per resource, each after those that it refers to
//!   at once:      a machine's end, noticed by the SAL ─▶ one Keep job
//!   Keep          what it came to by itself ─▶ told ─▶ drift? ─▶ put right ─▶ told
//! ```
//!
//! Only what a task holds that no job works on is kept: a version under way makes its resources
//! itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rhizome_model::{
    DesiredResource, Drift, Drifted, Event, Failure, Job, JobId, Name, Outcome, Phase, Priority,
    Repair, ResourceId, Task, Version, What, Work, WorkloadKind, queue_name,
};
use rhizome_queue::{Lease, QueueError};
use rhizome_sal::{Notice, Workload};
use rhizome_service::clock;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::Runner;
use crate::operation::Trouble;

/// The longest that one resource may take.
const TIMEOUT_MS: u64 = 5 * 60 * 1000;
/// Who keeps failing is tried again with the next round: each attempt is an event.
const ATTEMPTS: u32 = 3;
/// Notices that came too early are looked at again this often.
const EARLY: Duration = Duration::from_secs(1);

impl Runner {
    /// Looks after everything that a task desires, in the order of what refers to what. Answers what
    /// could not be put right; the next round tries again.
    pub(crate) async fn keep_all(
        &self,
        lease: &Lease,
        task: &Task,
    ) -> Result<Vec<Failure>, QueueError> {
        let id = |name: &Name| {
            let what = format!("keep {} {} {name}", lease.job.id, lease.attempt);
            JobId::derived(&task.deployment, task.version, &what)
        };
        let ids: HashMap<_, _> =
            task.desired.resources.iter().map(|r| (r.name.clone(), id(&r.name))).collect();
        let mut jobs = Vec::with_capacity(ids.len());
        let mut failures = Vec::new();
        for resource in &task.desired.resources {
            let needs = match resource.kind.references(&resource.spec) {
                Ok(needs) => needs,
                Err(failure) => {
                    failures.push(failure.about(resource.name.clone()));
                    continue;
                }
            };
            let after = needs.iter().filter_map(|n| ids.get(&n.name).copied()).collect();
            let (parent, priority) = (Some(lease.job.id), lease.job.priority);
            let job = keep_job(task, resource, ids[&resource.name]);
            jobs.push(Job { parent, priority, after, trace: lease.job.trace, ..job });
        }
        self.queue.submit(&jobs).await?;
        for job in jobs {
            if let Outcome::Failed(failure) = self.queue.wait(job.id).await? {
                failures.push(failure);
            }
        }
        Ok(failures)
    }

    /// One resource; answers its status.
    pub(crate) async fn keep(
        &self,
        lease: &Lease,
        kind: WorkloadKind,
        id: &ResourceId,
        spec: &Value,
    ) -> Result<Value, Trouble> {
        let workload = self.workload(kind)?;
        self.tell(lease, workload.as_ref(), kind, id).await?;
        if self.kept_spec(kind, id).await?.as_ref() != Some(spec) {
            return Ok(Value::Null);
        }
        let open = self.unsealer.open(id, spec).await?;
        let kept = workload.keep(id, &open).await?;
        let mut status = kept.status;
        // The task may have moved on meanwhile, and its newer jobs may have been here first.
        match self.held(kind, id).await? {
            Held::Gone => {
                workload.delete(id).await?;
                return Ok(Value::Null);
            }
            Held::As(now) if now != *spec => {
                let open = self.unsealer.open(id, &now).await?;
                status = workload.ensure(id, &open).await?.status;
            }
            Held::As(_) => {}
        }
        let at = clock::now_ms();
        let events: Vec<_> =
            kept.drifted.into_iter().map(|d| drift_event(lease, kind, id, at, d)).collect();
        lease.set_status(&id.deployment_id(), &id.name, Some(&status), &events).await?;
        Ok(status)
    }

    /// Tells what a resource came to by itself. Should this runner die between the two steps it is
    /// told twice; that is better than not at all.
    async fn tell(
        &self,
        lease: &Lease,
        workload: &dyn Workload,
        kind: WorkloadKind,
        id: &ResourceId,
    ) -> Result<(), Trouble> {
        let Some(untold) = workload.untold(id).await? else { return Ok(()) };
        let status = workload.observe(id).await?;
        let events = untold.ends.iter().map(|(at, d)| drift_event(lease, kind, id, *at, d.clone()));
        let events: Vec<_> = events.collect();
        lease.set_status(&id.deployment_id(), &id.name, status.as_ref(), &events).await?;
        untold.told()?;
        Ok(())
    }

    /// The spec that the resource is to be kept by; none while a job works on its task.
    async fn kept_spec(
        &self,
        kind: WorkloadKind,
        id: &ResourceId,
    ) -> Result<Option<Value>, QueueError> {
        let task = self.queue.task(&id.deployment_id()).await?;
        Ok(task.as_ref().and_then(|t| kept(t, kind, &id.name)).map(|r| r.spec.clone()))
    }

    async fn held(&self, kind: WorkloadKind, id: &ResourceId) -> Result<Held, QueueError> {
        let task = self.queue.task(&id.deployment_id()).await?;
        let Some(task) = task.filter(|t| t.phase != Phase::Deleting) else { return Ok(Held::Gone) };
        let held = task.held().into_iter().find(|r| r.name == id.name && r.kind == kind);
        Ok(held.map_or(Held::Gone, |r| Held::As(r.spec.clone())))
    }

    /// Submits a job at once for whatever the SAL notices, until told to stop.
    pub(crate) async fn watch(self: Arc<Self>, kind: WorkloadKind, stop: CancellationToken) {
        let mut notices = match self.workload(kind).map(|workload| workload.watch()) {
            Ok(Ok(Some(notices))) => notices,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::warn!(%kind, %error, "what happens is noticed only every minute");
                return;
            }
        };
        // Of resources whose task a job works on: they are looked after when it is through.
        let mut early: HashMap<ResourceId, Notice> = HashMap::new();
        loop {
            let due: Vec<_> = tokio::select! {
                notice = notices.recv() => notice.into_iter().collect(),
                () = tokio::time::sleep(EARLY), if !early.is_empty() => early.values().cloned().collect(),
                () = stop.cancelled() => return,
            };
            if due.is_empty() {
                return;
            }
            for notice in due {
                early.remove(&notice.id);
                match self.notice(kind, &notice).await {
                    Ok(Heard::Seen) => {}
                    Ok(Heard::Early) => drop(early.insert(notice.id.clone(), notice)),
                    Err(error) => {
                        tracing::warn!(resource = %notice.id, %error, "waits for the next round");
                    }
                }
            }
        }
    }

    /// Several runners notice the same: their jobs have the same id.
    async fn notice(&self, kind: WorkloadKind, notice: &Notice) -> Result<Heard, QueueError> {
        let Some(task) = self.queue.task(&notice.id.deployment_id()).await? else {
            return Ok(Heard::Seen);
        };
        let Some(resource) = kept(&task, kind, &notice.id.name) else {
            return Ok(if is_at_rest(task.phase) { Heard::Seen } else { Heard::Early });
        };
        tracing::info!(resource = %notice.id, what = %notice.what, "looks after a resource");
        let what = format!("notice {} {}", notice.id.name, notice.what);
        let job = keep_job(&task, resource, JobId::derived(&task.deployment, task.version, &what));
        self.queue.submit(&[job]).await?;
        Ok(Heard::Seen)
    }

    /// Says that an orphan went.
    pub(crate) async fn tell_of_orphan(
        &self,
        kind: WorkloadKind,
        id: &ResourceId,
        version: Option<Version>,
    ) -> Result<(), QueueError> {
        let drifted = Drifted {
            drift: Drift::Orphan,
            action: Repair::Removed,
            cause: Some("no task knows it".into()),
            retry_in_ms: None,
        };
        let what = What::Drift { resource: id.name.clone(), kind, drifted };
        let event = Event {
            at: clock::now_ms(),
            deployment: id.deployment_id(),
            version: version.unwrap_or(Version(0)),
            node: None,
            what,
        };
        self.queue.publish(&[event]).await
    }
}

/// What became of a notice.
enum Heard {
    Seen,
    /// A job still works on the task.
    Early,
}

/// What a task holds of a resource now.
enum Held {
    As(Value),
    Gone,
}

/// A resource that is to be kept as it is: no job works on its task.
fn kept<'a>(task: &'a Task, kind: WorkloadKind, name: &Name) -> Option<&'a DesiredResource> {
    task.desired.get(name).filter(|r| is_at_rest(task.phase) && r.kind == kind)
}

fn is_at_rest(phase: Phase) -> bool {
    matches!(phase, Phase::Ready | Phase::Failed | Phase::Deleted)
}

fn keep_job(task: &Task, resource: &DesiredResource, id: JobId) -> Job {
    let work = Work::Keep {
        kind: resource.kind,
        id: task.deployment.resource(resource.name.clone()),
        spec: resource.spec.clone(),
    };
    Job {
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        resource: Some(resource.name.clone()),
        priority: Priority::Normal,
        max_attempts: ATTEMPTS,
        timeout_ms: TIMEOUT_MS,
        ..Job::new(id, queue_name(&work), task.deployment.account, work)
    }
}

fn drift_event(
    lease: &Lease,
    kind: WorkloadKind,
    id: &ResourceId,
    at: i64,
    drifted: Drifted,
) -> Event {
    tracing::info!(resource = %id, ?drifted, "drift");
    let what = What::Drift { resource: id.name.clone(), kind, drifted };
    let version = lease.job.version.unwrap_or(Version(0));
    Event { at, deployment: id.deployment_id(), version, node: None, what }
}
