//! Signed operations: one action on one resource of this node, done once.
//!
//! ```text
//!   verify ▶ is it for this node and version ▶ can it be ▶ one atomic step: nonce, job
//! ```
//!
//! The job's id is derived from what was signed, so the same envelope always leads to the same job.

use rhizome_identity::{Verified, digest, verify};
use rhizome_model::api::JobView;
use rhizome_model::{
    Action, Code, DeploymentId, Envelope, Failure, Job, JobId, OperationDocument, Phase, Priority,
    ResourceId, Task, TraceId, Work, WorkloadKind, queue_name,
};
use rhizome_queue::{Operate, Operation};

use crate::{Supervisor, intake, view};

/// The longest that an action may take; a command may run for a day.
const ACTION_MS: u64 = 10 * 60 * 1000;
const COMMAND_MS: u64 = 24 * 3600 * 1000;

impl Supervisor {
    /// The job of an envelope that was taken before. It was verified when it came first, and is not
    /// refused now because it has expired meanwhile.
    pub(crate) async fn known_operation(
        &self,
        bytes: &[u8],
        envelope: &Envelope,
        document: &OperationDocument,
    ) -> Result<Option<JobView>, Failure> {
        let id = job_id(&deployment(document), document, &digest(envelope));
        if self.queue.job(id).await?.is_none() {
            return Ok(None);
        }
        // Only who holds the signed envelope itself is shown what became of it.
        let in_time = document.expires.saturating_sub(1);
        verify(bytes, self.statements.as_ref(), &self.network, in_time).await?;
        self.operation_view(id).await
    }

    pub(crate) async fn operate(
        &self,
        verified: &Verified,
        document: &OperationDocument,
    ) -> Result<JobView, Failure> {
        let node = self.facts.id;
        if document.node != node {
            let message = format!("this is node {node}; it was signed for node {}", document.node);
            return Err(Failure::new(Code::WrongNode, message));
        }
        let deployment = deployment(document);
        let task = self.queue.task(&deployment).await?.filter(|t| t.phase != Phase::Deleted);
        let task = task.ok_or_else(|| {
            Failure::new(Code::NotFound, format!("there is no deployment {deployment} here"))
        })?;
        if task.version != document.version {
            let (here, signed) = (task.version, document.version);
            let message = format!(
                "{deployment} is at version {here}, and this was signed for version {signed}: look \
                 at it and sign again"
            );
            return Err(Failure::new(Code::StaleVersion, message));
        }
        let kind = target(&task, document)?;
        let job = action_job(&task, kind, document, verified);
        let request = Operate {
            nonce: &document.nonce,
            nonce_expires: document.expires,
            digest: &verified.digest,
            job: &job,
        };
        let known = match self.queue.operate(request).await? {
            Operation::Accepted | Operation::Same => self.operation_view(job.id).await?,
            Operation::Replayed => None,
        };
        known.ok_or_else(|| intake::replayed(&document.nonce))
    }

    async fn operation_view(&self, id: JobId) -> Result<Option<JobView>, Failure> {
        let Some(record) = self.queue.job(id).await? else { return Ok(None) };
        let log = self.last_lines(id).await;
        Ok(Some(view::job(record, self.facts.id, log)))
    }
}

/// The kind of the resource, if the action can be done with it now.
fn target(task: &Task, document: &OperationDocument) -> Result<WorkloadKind, Failure> {
    let (id, name) = (&task.deployment, &document.resource);
    if task.phase == Phase::Deleting {
        return Err(Failure::new(Code::Conflict, format!("{id} is being deleted")));
    }
    let missing = || Failure::new(Code::NotFound, format!("there is no resource {id}/{name} here"));
    let Action::Resize { to } = &document.action else {
        let held = task.held().into_iter().find(|r| &r.name == name).ok_or_else(missing)?;
        return Ok(held.kind);
    };
    if !task.phase.is_settled() {
        let message = format!("{id} is {}; wait for its end before you resize", task.phase);
        return Err(Failure::new(Code::Conflict, message));
    }
    let desired = task.desired.get(name).ok_or_else(missing)?;
    desired.kind.resized(&desired.spec, to)?;
    Ok(desired.kind)
}

fn action_job(
    task: &Task,
    kind: WorkloadKind,
    document: &OperationDocument,
    verified: &Verified,
) -> Job {
    let (account, deployment) = (document.account, document.name.clone());
    let id = ResourceId { account, deployment, name: document.resource.clone() };
    let action = document.action.clone();
    let repeats = action.may_repeat();
    // Each writes the whole task: one after the other.
    let order =
        matches!(action, Action::Resize { .. }).then(|| format!("resize {}", task.deployment));
    let work = Work::Act { kind, id, action };
    let id = job_id(&task.deployment, document, &verified.digest);
    Job {
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        resource: Some(document.resource.clone()),
        priority: Priority::High,
        max_attempts: if repeats { kind.retry().attempts } else { 1 },
        timeout_ms: if repeats { ACTION_MS } else { COMMAND_MS },
        order,
        trace: Some(TraceId::of_payload(&verified.envelope.payload)),
        ..Job::new(id, queue_name(&work), account, work)
    }
}

fn deployment(document: &OperationDocument) -> DeploymentId {
    DeploymentId { account: document.account, name: document.name.clone() }
}

/// The digest covers the nonce.
fn job_id(deployment: &DeploymentId, document: &OperationDocument, digest: &str) -> JobId {
    JobId::derived(deployment, document.version, &format!("operation {digest}"))
}
