//! Script jobs: a task's version becomes real, is kept real, or goes.
//!
//! ```text
//!  Script    evaluate ─▶ every declared resource made ─▶ delete what is no longer declared ─▶ ready
//!               └─ failed ─▶ go back to what was desired (or keep) ─▶ failed
//!  Settle    look after everything desired, in order
//!  Teardown  stop what is under way ─▶ delete everything held, last declared first ─▶ deleted
//! ```
//!
//! Invariants: a resource is in the task before anything makes it, and leaves the task after it is
//! gone; every write of the task is fenced by the lease; every operation may be repeated.

mod causes;
mod evaluation;
mod operations;
mod writer;

use std::collections::HashSet;

use futures_util::try_join;
use rhizome_engine::{Context, Peer, Script, Stop};
use rhizome_model::{
    Backoff, Capacity, Code, DeploymentDocument, Desired, DesiredResource, Document, Envelope,
    Event, Failure, Journal, Move, Name, NodeFacts, OnFailure, Outcome, Phase, Task, What, Work,
};
use rhizome_queue::{Lease, QueueError, Retried};
use rhizome_service::{clock, random};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::Runner;
use causes::together;
use evaluation::Evaluating;
use operations::{Operations, Undone};
use writer::Writer;

/// Between attempts to undo or to delete what would not go.
const STUCK: Backoff =
    Backoff::new(std::time::Duration::from_secs(1), std::time::Duration::from_secs(60));

/// Why a script job stops early.
enum Halt {
    /// The queue is away or the lease is lost: another attempt goes on from here.
    Lost(QueueError),
    /// Something would not go; it is tried again.
    Stuck(Failure),
}

impl From<QueueError> for Halt {
    fn from(error: QueueError) -> Self {
        Self::Lost(error)
    }
}

impl Runner {
    /// `stop` ends an evaluation; what makes the node match its task again is not broken off.
    pub(crate) async fn script_job(
        &self,
        lease: &Lease,
        stop: &CancellationToken,
    ) -> Result<(), QueueError> {
        let (task, journal) = match (&lease.job.deployment, &lease.job.work) {
            (Some(deployment), Work::Script) => {
                try_join!(self.queue.task(deployment), self.queue.journal(deployment))?
            }
            (Some(deployment), _) => (self.queue.task(deployment).await?, Journal::default()),
            (None, _) => (None, Journal::default()),
        };
        let Some(task) = task.filter(|t| Some(t.version) == lease.job.version) else {
            // A newer version has taken its place: there is nothing left to do.
            return lease.finish(&Outcome::Cancelled).await;
        };
        let over = match &lease.job.work {
            Work::Script => task.phase.is_settled(),
            Work::Teardown => task.phase == Phase::Deleted,
            _ => false,
        };
        if over {
            // Asked for while another attempt came to the end.
            return lease.finish(&Outcome::Cancelled).await;
        }
        let result = match &lease.job.work {
            Work::Settle => self.settle(lease, &task).await,
            Work::Teardown => self.teardown(lease, task).await,
            _ if task.failure.is_some() => self.go_back(lease, task).await,
            _ => self.evaluate(lease, task, journal, stop).await,
        };
        match result {
            Ok(()) => Ok(()),
            Err(Halt::Lost(error)) => Err(error),
            Err(Halt::Stuck(failure)) => self.stuck(lease, failure).await,
        }
    }

    /// What a version changed cannot be undone now: that is what its task is known for, until it can.
    async fn rollback_stuck(&self, lease: &Lease, cause: &Failure) -> Result<(), QueueError> {
        let Some(deployment) = &lease.job.deployment else { return Ok(()) };
        let Some(mut task) = self.queue.task(deployment).await? else { return Ok(()) };
        let undoes = task.failure.is_some() && Some(task.version) == lease.job.version;
        if !undoes {
            return Ok(());
        }
        let phase = task.phase.step(Move::Stick).unwrap_or(task.phase);
        let what = What::Phase { phase, failure: Some(cause.clone()), outputs: None };
        let events =
            if task.stuck.as_ref() == Some(cause) { vec![] } else { vec![event(&task, what)] };
        task.phase = phase;
        task.stuck = Some(cause.clone());
        task.updated_at = clock::now_ms();
        lease.update(&task, &events).await
    }

    async fn evaluate(
        &self,
        lease: &Lease,
        task: Task,
        journal: Journal,
        stop: &CancellationToken,
    ) -> Result<(), Halt> {
        let document = match read_document(&task) {
            Ok(document) => document,
            Err(failure) => return self.failed(lease, task, OnFailure::Rollback, failure).await,
        };
        let policy = document.policy.on_failure;
        let Some(sandboxes) = &self.sandboxes else {
            let failure = Failure::new(Code::Internal, "this runner evaluates no scripts");
            return self.failed(lease, task, policy, failure).await;
        };
        let facts = journal.facts.clone().unwrap_or_else(|| self.facts.clone());
        let script = self.script_of(&task, &document, &facts);
        let new_facts = journal.facts.is_none().then(|| facts.clone());
        let resized_before = journal.resizes();
        let (mut writer, inbox) =
            match Writer::new(lease, self.allowances.clone(), task.clone(), new_facts) {
                Ok(both) => both,
                Err(failure) => return self.failed(lease, task, policy, failure).await,
            };
        let operations = Operations::new(self.queue.clone(), lease);
        let host = Evaluating::new(document, facts, task.desired, operations, journal, inbox);
        let over = async move {
            let result = sandboxes.evaluate(&script, &host, stop.clone()).await;
            let causes = match &result {
                Err(Stop::Failed(_)) => host.wait_for_all(true).await?,
                Err(Stop::Aborted) => return Err(host.loss()),
                Ok(_) | Err(Stop::Unknown) => Vec::new(),
            };
            // With the host goes the inbox: the writer ends when it has written what is left.
            Ok::<_, QueueError>((result, causes, host.into_broken()))
        };
        let (result, causes, broken) = {
            let mut writing = std::pin::pin!(writer.run());
            let over = tokio::select! {
                over = over => over?,
                lost = &mut writing => {
                    return Err(Halt::Lost(lost.err().unwrap_or(QueueError::Fenced)));
                }
            };
            writing.await?;
            over
        };
        let resized = resized_before || writer.resizes();
        let mut task = writer.into_task();
        if resized {
            task.declared = self.queue.journal(&task.deployment).await?.declared();
        }
        let failure = match result {
            Ok(evaluation) => {
                task.outputs = evaluation.outputs;
                return self.succeeded(lease, task, policy, &broken).await;
            }
            Err(Stop::Failed(failure)) => failure,
            Err(Stop::Unknown) => {
                Failure::new(Code::Internal, "a value stayed unknown in a real evaluation")
            }
            // It was said above why.
            Err(Stop::Aborted) => return Err(Halt::Lost(QueueError::Fenced)),
        };
        let failure = together(Some(failure.clone()), causes).unwrap_or(failure);
        self.failed(lease, task, policy, failure).await
    }

    fn script_of(&self, task: &Task, document: &DeploymentDocument, facts: &NodeFacts) -> Script {
        let peers = task.peers.iter();
        let peers = peers.map(|(node, address)| Peer { node: *node, address: *address });
        Script {
            file: format!("{}.rhai", document.name),
            source: document.script.clone(),
            context: Context {
                params: document.params.clone(),
                node: facts.clone(),
                deployment: task.deployment.clone(),
                version: task.version,
                peers: peers.collect(),
            },
            limits: self.limits,
        }
    }

    /// Deletes what the version no longer declares, and makes its declarations the desired state.
    /// What could not be made though the script went on stays as it was before.
    async fn succeeded(
        &self,
        lease: &Lease,
        mut task: Task,
        policy: OnFailure,
        broken: &[DesiredResource],
    ) -> Result<(), Halt> {
        let operations = Operations::new(self.queue.clone(), lease);
        let named = |these: &[DesiredResource]| -> HashSet<Name> {
            these.iter().map(|r| r.name.clone()).collect()
        };
        let (declared, failed) = (named(&task.declared), named(broken));
        let (mut gone, mut before) = (Vec::new(), Vec::new());
        for old in &task.desired.resources {
            // One whose name is declared was replaced, and is gone already if its kind was another.
            if failed.contains(&old.name) {
                before.push(old.clone());
            } else if !declared.contains(&old.name) {
                gone.push(old.clone());
            }
        }
        gone.extend(undeclared(broken, &before));
        match operations.delete_all(&gone, "drop").await {
            Err(Undone::Failed(failure)) if failure.code == Code::DataLoss => {
                return self.failed(lease, task, policy, failure).await;
            }
            dropped => dropped.map_err(stuck)?,
        }
        operations.ensure_all(&before, "restore").await.map_err(stuck)?;
        let mut resources = before;
        resources.extend(undeclared(&task.declared, broken));
        task.declared.clear();
        task.desired = Desired { version: Some(task.version), resources };
        task.phase = Phase::Ready;
        task.reserved = total(&task.desired.resources).map_err(Halt::Stuck)?;
        task.updated_at = clock::now_ms();
        let outputs = json!(task.outputs);
        let what =
            What::Phase { phase: Phase::Ready, failure: None, outputs: Some(outputs.clone()) };
        let events = [event(&task, what)];
        Ok(lease.finish_with(&Outcome::Succeeded(outputs), Some(&task), &events).await?)
    }

    /// Notes the failure first, so that whoever has the job next goes on with what follows from it.
    async fn failed(
        &self,
        lease: &Lease,
        mut task: Task,
        policy: OnFailure,
        failure: Failure,
    ) -> Result<(), Halt> {
        if task.declared.is_empty() {
            return self.end_failed(lease, task, failure).await;
        }
        if policy == OnFailure::Keep {
            let operations = Operations::new(self.queue.clone(), lease);
            let made = operations.made(&task.declared).await?;
            let kept = undeclared(&task.desired.resources, &task.declared);
            task.desired.resources = kept.into_iter().chain(made).collect();
            task.declared.clear();
            return self.end_failed(lease, task, failure).await;
        }
        task.failure = Some(failure);
        task.phase = Phase::Running;
        task.updated_at = clock::now_ms();
        lease.update(&task, &[]).await?;
        self.go_back(lease, task).await
    }

    /// Undoes in reverse order what a failed version did, and restores what it changed.
    async fn go_back(&self, lease: &Lease, mut task: Task) -> Result<(), Halt> {
        let operations = Operations::new(self.queue.clone(), lease);
        operations.quiesce(&task.declared).await?;
        let created = undeclared(&task.declared, &task.desired.resources);
        operations.delete_all(&created, "undo").await.map_err(stuck)?;
        operations.ensure_all(&task.desired.resources, "restore").await.map_err(stuck)?;
        task.declared.clear();
        let failure = task.failure.take().unwrap_or_else(|| {
            Failure::new(Code::Internal, "the cause of the failure was not recorded")
        });
        self.end_failed(lease, task, failure).await
    }

    async fn end_failed(
        &self,
        lease: &Lease,
        mut task: Task,
        failure: Failure,
    ) -> Result<(), Halt> {
        task.phase = Phase::Failed;
        task.stuck = None;
        task.failure = Some(failure.clone());
        task.reserved = total(&task.desired.resources).map_err(Halt::Stuck)?;
        task.updated_at = clock::now_ms();
        let what =
            What::Phase { phase: Phase::Failed, failure: Some(failure.clone()), outputs: None };
        let events = [event(&task, what)];
        Ok(lease.finish_with(&Outcome::Failed(failure), Some(&task), &events).await?)
    }

    async fn settle(&self, lease: &Lease, task: &Task) -> Result<(), Halt> {
        let failures = self.keep_all(lease, task).await?;
        Ok(lease.finish(&Outcome::Succeeded(json!({ "failures": failures }))).await?)
    }

    async fn teardown(&self, lease: &Lease, mut task: Task) -> Result<(), Halt> {
        let operations = Operations::new(self.queue.clone(), lease);
        operations.end_script().await?;
        operations.quiesce(&task.declared).await?;
        let held: Vec<_> = task.held().into_iter().cloned().collect();
        operations.delete_all(&held, "delete").await.map_err(stuck)?;
        task.phase = task.phase.step(Move::Gone).unwrap_or(Phase::Deleted);
        task.desired = Desired::default();
        task.declared.clear();
        task.reserved = Capacity::default();
        task.failure = None;
        task.updated_at = clock::now_ms();
        let what = What::Phase { phase: Phase::Deleted, failure: None, outputs: None };
        let events = [event(&task, what)];
        Ok(lease.finish_with(&Outcome::Succeeded(json!(null)), Some(&task), &events).await?)
    }

    /// Tries again later, and says so.
    async fn stuck(&self, lease: &Lease, failure: Failure) -> Result<(), QueueError> {
        if matches!(lease.job.work, Work::Script) {
            self.rollback_stuck(lease, &failure).await?;
        }
        let delay = random::jittered(STUCK, lease.attempt);
        tracing::warn!(job = %lease.job.id, attempt = lease.attempt, error = %failure, "stuck; tries again");
        let mut events = Vec::new();
        if let (Some(deployment), Some(version)) = (lease.job.deployment.clone(), lease.job.version)
        {
            let what = What::Retrying {
                what: "undoing, restoring or deleting".into(),
                cause: failure.message.clone(),
                in_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
            };
            events.push(Event { at: clock::now_ms(), deployment, version, node: None, what });
        }
        match lease.retry(&failure, delay, &events).await? {
            Retried::Later => {}
            Retried::Exhausted => {
                tracing::error!(job = %lease.job.id, error = %failure, "gave up; it stays as it is");
            }
        }
        Ok(())
    }
}

fn stuck(undone: Undone) -> Halt {
    match undone {
        Undone::Lost(error) => Halt::Lost(error),
        Undone::Failed(failure) => Halt::Stuck(failure),
    }
}

/// Those of `these` that `others` do not name with the same kind.
fn undeclared(these: &[DesiredResource], others: &[DesiredResource]) -> Vec<DesiredResource> {
    let others: HashSet<_> = others.iter().map(|o| (&o.name, o.kind)).collect();
    these.iter().filter(|r| !others.contains(&(&r.name, r.kind))).cloned().collect()
}

fn total(resources: &[DesiredResource]) -> Result<Capacity, Failure> {
    Ok(Capacity::total(
        resources.iter().map(DesiredResource::demand).collect::<Result<Vec<_>, _>>()?,
    ))
}

fn event(task: &Task, what: What) -> Event {
    Event {
        at: clock::now_ms(),
        deployment: task.deployment.clone(),
        version: task.version,
        node: None,
        what,
    }
}

/// The document of the task's envelope. The supervisor verified it before it enqueued the job.
fn read_document(task: &Task) -> Result<DeploymentDocument, Failure> {
    let unreadable = |e: String| Failure::new(Code::Internal, format!("the stored envelope: {e}"));
    let envelope =
        Envelope::from_json(task.envelope.as_bytes()).map_err(|e| unreadable(e.to_string()))?;
    match Document::from_payload(&envelope.payload_type, &envelope.payload) {
        Some(Ok(Document::Deployment(document))) => Ok(*document),
        Some(Err(e)) => Err(unreadable(e)),
        Some(Ok(Document::Delete(_) | Document::Operation(_))) | None => {
            Err(unreadable("it holds no deployment".into()))
        }
    }
}
