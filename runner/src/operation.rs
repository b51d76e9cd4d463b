//! Operation jobs: one call of the SAL each.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::api::OutputChunk;
use rhizome_model::{
    Action, Class, Code, Done, Event, Failure, Outcome, Phase, ResourceId, RetryPolicy, What, Work,
    WorkloadKind,
};
use rhizome_queue::{Lease, QueueError, Retried};
use rhizome_sal::{Chunk, SalError, Workload};
use rhizome_service::{clock, random};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::attempt::{GRACE, GRACE_OF_DRAIN, Halt, Hangs, Limits};
use crate::{Runner, outcome};

/// Pieces of output that wait to be written; a program that prints faster is slowed down.
const OUTPUT_BACKLOG: usize = 64;

/// Why an operation failed, and whether the cause may pass by itself.
pub(crate) struct Trouble {
    failure: Failure,
    may_pass: bool,
}

/// What an operation came to.
struct Performed {
    value: Value,
    /// Of a resource that was made so, what that took.
    done: Option<Done>,
}

impl From<Value> for Performed {
    fn from(value: Value) -> Self {
        Self { value, done: None }
    }
}

impl From<SalError> for Trouble {
    fn from(error: SalError) -> Self {
        Self { may_pass: error.is_retryable(), failure: error.into() }
    }
}

/// Another service that is away comes back; a refusal stays one.
impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self { may_pass: failure.code.class() == Class::Unreachable, failure }
    }
}

impl From<QueueError> for Trouble {
    fn from(error: QueueError) -> Self {
        Failure::from(error).into()
    }
}

impl Runner {
    /// One call of the SAL. It is not left while it may still change something.
    pub(crate) async fn operation(
        &self,
        lease: &Lease,
        limits: &Limits,
    ) -> Result<Result<(), QueueError>, Hangs> {
        match self.is_superseded(lease).await {
            Ok(false) => {}
            Ok(true) => return Ok(lease.finish(&Outcome::Cancelled).await),
            Err(error) => return Ok(Err(error)),
        }
        let stop = lease.cancelled().child_token();
        let (halt, result) = {
            let mut perform = std::pin::pin!(self.perform(lease, &stop));
            let halt = tokio::select! {
                result = &mut perform => return Ok(self.conclude(lease, result).await),
                halt = limits.halt() => halt,
            };
            stop.cancel();
            let left = limits.time.saturating_sub(limits.started.elapsed());
            let grace = match halt {
                // Whoever cancels waits for the end; what cannot be broken off has its time.
                Halt::Cancelled => left + GRACE,
                Halt::TimedOut => GRACE,
                Halt::Drained => GRACE_OF_DRAIN,
            };
            (halt, tokio::time::timeout(grace, perform).await.map_err(|_| Hangs)?)
        };
        Ok(match (halt, result) {
            (Halt::Cancelled, _) => lease.finish(&Outcome::Cancelled).await,
            // It came to its end all the same.
            (Halt::TimedOut | Halt::Drained, Ok(value)) => self.succeed(lease, value).await,
            (Halt::TimedOut, Err(_)) => self.fail(lease, about(lease, limits.out_of_time())).await,
            (Halt::Drained, Err(_)) => lease.release().await,
        })
    }

    async fn conclude(
        &self,
        lease: &Lease,
        result: Result<Performed, Trouble>,
    ) -> Result<(), QueueError> {
        let trouble = match result {
            // A delete may have been first while this waited for the resource.
            Ok(_) if self.is_superseded(lease).await? => return self.take_back(lease).await,
            Ok(value) => return self.succeed(lease, value).await,
            Err(trouble) => trouble,
        };
        let failure = about(lease, trouble.failure);
        if !trouble.may_pass {
            return self.fail(lease, failure).await;
        }
        let policy = lease.job.work.kind().map_or(RetryPolicy::USUAL, WorkloadKind::retry);
        let delay = random::jittered(policy.backoff, lease.attempt);
        let event = failed_event(lease, &failure, Some(delay));
        match lease.retry(&failure, delay, &event).await? {
            Retried::Later => Ok(()),
            Retried::Exhausted => self.queue.publish(&failed_event(lease, &failure, None)).await,
        }
    }

    /// Whether the task has moved on since this was asked for: making an old version's resource
    /// would undo what the newer one did, or bring back what was deleted.
    async fn is_superseded(&self, lease: &Lease) -> Result<bool, QueueError> {
        let (Work::Ensure { .. }, Some(deployment)) = (&lease.job.work, &lease.job.deployment)
        else {
            return Ok(false);
        };
        let progress = self.queue.progress(deployment).await?;
        Ok(!progress.is_some_and(|(version, phase)| {
            Some(version) == lease.job.version && !matches!(phase, Phase::Deleting | Phase::Deleted)
        }))
    }

    /// What was made though nobody asks for it any more goes again.
    async fn take_back(&self, lease: &Lease) -> Result<(), QueueError> {
        if let (Work::Ensure { kind, id, .. }, Some(deployment)) =
            (&lease.job.work, &lease.job.deployment)
        {
            let task = self.queue.task(deployment).await?;
            let known = task.is_some_and(|t| t.held().iter().any(|r| r.name == id.name));
            let workload = (!known).then(|| self.workload(*kind));
            if let Some(Ok(workload)) = workload
                && let Err(error) = workload.delete(id).await
            {
                tracing::warn!(resource = %id, %error, "an orphan is left to the next sweep");
            }
        }
        lease.finish(&Outcome::Cancelled).await
    }

    async fn succeed(&self, lease: &Lease, performed: Performed) -> Result<(), QueueError> {
        let Performed { value, done } = performed;
        let (status, what) = match (&lease.job.work, &lease.job.resource) {
            (Work::Ensure { kind, .. }, Some(resource)) => {
                let (resource, kind) = (resource.clone(), *kind);
                (
                    Some(Some(value.clone())),
                    Some(What::Ready { resource, kind, status: value.clone(), done }),
                )
            }
            (Work::Delete { kind, .. }, Some(resource)) => (
                Some(None),
                Some(What::ResourceDeleted { resource: resource.clone(), kind: *kind }),
            ),
            (Work::Observe { .. }, Some(_)) => (Some(Some(value.clone())), None),
            _ => (None, None),
        };
        let events = event(lease, what);
        if let (Some(status), Some(deployment), Some(resource)) =
            (status, &lease.job.deployment, &lease.job.resource)
        {
            lease.set_status(deployment, resource, status.as_ref(), &events).await?;
        }
        lease.finish(&outcome(Ok(value))).await
    }

    async fn fail(&self, lease: &Lease, failure: Failure) -> Result<(), QueueError> {
        let events = failed_event(lease, &failure, None);
        lease.finish_with(&outcome(Err(failure)), None, &events).await
    }

    async fn perform(&self, lease: &Lease, stop: &CancellationToken) -> Result<Performed, Trouble> {
        let value: Result<Value, Trouble> = match &lease.job.work {
            Work::Ensure { kind, id, spec } => {
                let spec = self.unsealer.open(id, spec).await?;
                let ensured = self.workload(*kind)?.ensure(id, &spec).await?;
                return Ok(Performed { value: ensured.status, done: Some(ensured.done) });
            }
            Work::Keep { kind, id, spec } => Ok(self.keep(lease, *kind, id, spec).await?),
            Work::Observe { kind, id } => {
                Ok(self.workload(*kind)?.observe_exactly(id).await?.unwrap_or(Value::Null))
            }
            Work::Delete { kind, id } => {
                self.keep_data(*kind, id).await?;
                self.workload(*kind)?.delete(id).await?;
                Ok(Value::Null)
            }
            Work::Sweep { kind } => self.sweep(*kind).await,
            Work::Act { kind, id, action: Action::Resize { to } } => {
                self.resize(lease, *kind, id, to).await
            }
            Work::Act { kind, id, action } => self.act(lease, *kind, id, action, stop).await,
            Work::Script | Work::Settle | Work::Teardown => {
                Err(Failure::new(Code::Internal, "a script's job is no operation").into())
            }
        };
        value.map(Performed::from)
    }

    async fn act(
        &self,
        lease: &Lease,
        kind: WorkloadKind,
        id: &ResourceId,
        action: &Action,
        stop: &CancellationToken,
    ) -> Result<Value, Trouble> {
        let workload = self.workload(kind)?;
        let (sender, mut receiver) = mpsc::channel(OUTPUT_BACKLOG);
        let by = lease.job.id.to_string();
        let acting = workload.act(id, action, &by, sender, stop.clone());
        let printing = async {
            while let Some(chunk) = receiver.recv().await {
                let chunk = match chunk {
                    Chunk::Stdout(bytes) => OutputChunk::Stdout { data: STANDARD.encode(bytes) },
                    Chunk::Stderr(bytes) => OutputChunk::Stderr { data: STANDARD.encode(bytes) },
                };
                lease.print(&chunk).await?;
            }
            Ok::<_, QueueError>(())
        };
        let (result, printed) = tokio::join!(acting, printing);
        printed?;
        let value = result?;
        if action.changes_status() {
            self.refresh(lease, workload.as_ref(), id).await?;
        }
        Ok(value)
    }

    /// Notes how a resource is now, so that nobody is shown how it was.
    async fn refresh(
        &self,
        lease: &Lease,
        workload: &dyn Workload,
        id: &ResourceId,
    ) -> Result<(), Trouble> {
        let status = workload.observe(id).await?;
        lease.set_status(&id.deployment_id(), &id.name, status.as_ref(), &[]).await?;
        Ok(())
    }

    /// Removes what carries our mark and no task knows. Whatever the system shows was declared
    /// before it was made, so the tasks are read after the system.
    async fn sweep(&self, kind: WorkloadKind) -> Result<Value, Trouble> {
        let workload = self.workload(kind)?;
        let mut removed = Vec::new();
        for id in workload.list().await? {
            let task = self.queue.task(&id.deployment_id()).await?;
            let known = task
                .as_ref()
                .is_some_and(|t| t.held().iter().any(|r| r.name == id.name && r.kind == kind));
            if !known {
                tracing::warn!(resource = %id, %kind, "removes an orphan: no task knows it");
                workload.delete(&id).await?;
                self.tell_of_orphan(kind, &id, task.map(|t| t.version)).await?;
                removed.push(id);
            }
        }
        Ok(json!(removed))
    }

    pub(crate) fn workload(
        &self,
        kind: WorkloadKind,
    ) -> Result<std::sync::Arc<dyn Workload>, Failure> {
        let sal = self.sal.as_ref().ok_or_else(|| {
            Failure::new(
                Code::Internal,
                format!("this runner makes no workloads; {kind} needs one"),
            )
        })?;
        Ok(sal.workload(kind))
    }
}

fn about(lease: &Lease, failure: Failure) -> Failure {
    match &lease.job.resource {
        Some(resource) if failure.resource.is_none() => failure.about(resource.clone()),
        _ => failure,
    }
}

fn event(lease: &Lease, what: Option<What>) -> Vec<Event> {
    let (Some(what), Some(deployment), Some(version)) =
        (what, lease.job.deployment.clone(), lease.job.version)
    else {
        return Vec::new();
    };
    vec![Event { at: clock::now_ms(), deployment, version, node: None, what }]
}

fn failed_event(lease: &Lease, failure: &Failure, retry: Option<Duration>) -> Vec<Event> {
    let kind = match &lease.job.work {
        Work::Ensure { kind, .. } | Work::Keep { kind, .. } | Work::Delete { kind, .. } => *kind,
        _ => return Vec::new(),
    };
    let what = lease.job.resource.clone().map(|resource| What::ResourceFailed {
        resource,
        kind,
        failure: failure.clone(),
        retry_in_ms: retry.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
    });
    event(lease, what)
}
