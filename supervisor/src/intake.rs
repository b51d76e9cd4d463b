//! From bytes that came from anywhere to a task with its capacity reserved and its job enqueued.
//!
//! ```text
//!   verify ▶ is it for this node ▶ seen before? ▶ plan in the sandbox ▶ would data be lost?
//!          ▶ one atomic step: nonce, version, capacity, task, job, event
//! ```
//!
//! A refusal changes nothing.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use rhizome_engine::{Context, Peer, Script, plan};
use rhizome_identity::{Verified, mycelium_address, verify};
use rhizome_model::api::{JobView, TaskView};
use rhizome_model::{
    Capacity, Code, DeleteDocument, DeploymentDocument, DeploymentId, Document, Envelope, Event,
    Failure, Job, JobId, NodeId, OperationDocument, Phase, Task, TraceId, What, Work, queue_name,
};
use rhizome_queue::{Accept, Acceptance, Allow};
use rhizome_service::clock;
use serde::Serialize;
use tracing::Instrument;

use crate::audit::Entry;
use crate::{Supervisor, view};

/// Runners that may die under one script before it is set aside.
const SCRIPT_ATTEMPTS: u32 = 20;
/// Deleting never gives up by itself within any time that matters.
const TEARDOWN_ATTEMPTS: u32 = 10_000;
/// What a script job may take beyond its evaluation: undoing what failed.
const UNDO_MS: u64 = 10 * 60 * 1000;

/// What an envelope has led to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Taken {
    Task(Box<TaskView>),
    /// Of an operation.
    Job(Box<JobView>),
}

/// What bytes ask for that nobody has verified yet: enough to see whether they were here before.
enum Asked {
    Task(DeploymentId),
    Operation(Envelope, Box<OperationDocument>),
}

impl Asked {
    fn read(bytes: &[u8]) -> Option<Self> {
        let envelope = Envelope::from_json(bytes).ok()?;
        match Document::from_payload(&envelope.payload_type, &envelope.payload)?.ok()? {
            Document::Operation(document) => Some(Self::Operation(envelope, document)),
            document => Some(Self::Task(document.deployment_id())),
        }
    }
}

impl Supervisor {
    /// Takes an envelope, or refuses it. The same envelope again is answered with its task or job.
    pub async fn take(&self, bytes: &[u8]) -> Result<Taken, Failure> {
        let current = match Asked::read(bytes) {
            Some(Asked::Task(id)) => self.queue.task(&id).await?,
            Some(Asked::Operation(envelope, document)) => {
                if let Some(job) = self.known_operation(bytes, &envelope, &document).await? {
                    return Ok(Taken::Job(Box::new(job)));
                }
                None
            }
            None => None,
        };
        // These very bytes were verified when they came first, and a coordinator that asks again
        // must not be refused because they have expired meanwhile.
        let are_here = |t: &&Task| t.envelope.as_bytes() == bytes && t.phase != Phase::Deleting;
        if let Some(task) = current.as_ref().filter(are_here) {
            return self.seen(task).await;
        }
        let verified =
            match verify(bytes, self.statements.as_ref(), &self.network, clock::now_secs()).await {
                Ok(verified) => verified,
                Err(failure) => {
                    let refused = Some(failure.code);
                    self.note(&Entry { what: "envelope", refused, ..Entry::default() });
                    return Err(failure);
                }
            };
        let trace_id = TraceId::of_payload(&verified.envelope.payload);
        let deployment = verified.document.deployment_id();
        let span = tracing::info_span!("intake", %trace_id, %deployment);
        let (what, result) = async {
            match &verified.document {
                Document::Deployment(document) => {
                    let task = self.deploy(bytes, &verified, document, current).await;
                    ("deploy", self.taken(task).await)
                }
                Document::Delete(document) => {
                    let task = self.delete(&verified, document, current).await;
                    ("delete", self.taken(task).await)
                }
                Document::Operation(document) => {
                    let job = self.operate(&verified, document).await;
                    (document.action.word(), job.map(|job| Taken::Job(Box::new(job))))
                }
            }
        }
        .instrument(span.clone())
        .await;
        let refused = result.as_ref().err().map(|f| f.code);
        span.in_scope(|| match refused {
            None => tracing::info!(what, "an envelope was accepted"),
            Some(code) => tracing::info!(what, %code, "an envelope was refused"),
        });
        self.note(&Entry {
            digest: Some(&verified.digest),
            deployment: Some(&deployment),
            signers: &verified.signers,
            what,
            refused,
            ..Entry::default()
        });
        result
    }

    async fn taken(&self, task: Result<Task, Failure>) -> Result<Taken, Failure> {
        self.seen(&task?).await
    }

    async fn seen(&self, task: &Task) -> Result<Taken, Failure> {
        let statuses = self.queue.statuses(&task.deployment).await?;
        Ok(Taken::Task(Box::new(view::task(task, self.facts.id, &statuses))))
    }

    /// Every request that wants something changed is in the audit log and counted.
    pub fn note(&self, entry: &Entry<'_>) {
        let code = entry.refused.map_or_else(|| "accepted".to_owned(), |code| code.to_string());
        metrics::counter!("rhizome_supervisor_requests_total", "what" => entry.what, "code" => code)
            .increment(1);
        self.audit.write(entry);
    }

    async fn deploy(
        &self,
        bytes: &[u8],
        verified: &Verified,
        document: &DeploymentDocument,
        current: Option<Task>,
    ) -> Result<Task, Failure> {
        if !document.placement.nodes.contains(&self.facts.id) {
            return Err(self.foreign());
        }
        let deployment = verified.document.deployment_id();
        let envelope = String::from_utf8_lossy(bytes).into_owned();
        let peers = self.peers(document).await?;
        let script = Script {
            file: format!("{}.rhai", document.name),
            source: document.script.clone(),
            context: Context {
                params: document.params.clone(),
                node: self.facts.clone(),
                deployment: deployment.clone(),
                version: document.version,
                peers: peers
                    .iter()
                    .map(|(node, address)| Peer { node: *node, address: *address })
                    .collect(),
            },
            limits: self.limits,
        };
        let plan = plan(&self.sandboxes, &script).await?;

        let job_id = JobId::script(&deployment, document.version);
        let mut task = Task::new(deployment, document.version, job_id);
        task.envelope = envelope;
        task.peers = peers;
        task.desired = current.as_ref().map(|t| t.desired.clone()).unwrap_or_default();
        // One that is not newer is refused for that, whatever it would do.
        if current.as_ref().is_none_or(|t| t.version < document.version) {
            let desired = &task.desired.resources;
            self.check_state(&task.deployment, desired, &plan, document).await?;
        }
        task.reserved = task.demand_during(&plan.resources)?;
        let allow = self.allow(task.deployment.account).await?;
        task.updated_at = clock::now_ms();
        let mut job =
            script_job(&task, Work::Script, self.limits.wall_ms + UNDO_MS, SCRIPT_ATTEMPTS);
        job.trace = Some(TraceId::of_payload(&verified.envelope.payload));
        self.accept(verified, (document.expires, allow), task, current.as_ref(), job).await
    }

    async fn delete(
        &self,
        verified: &Verified,
        document: &DeleteDocument,
        held: Option<Task>,
    ) -> Result<Task, Failure> {
        let deployment = verified.document.deployment_id();
        let Some(current) = held.clone().filter(|t| t.phase != Phase::Deleted) else {
            self.remember_deleted(verified, document, held.as_ref()).await?;
            let message = format!("there is no deployment {deployment} here");
            return Err(Failure::new(Code::NotFound, message));
        };
        if current.phase == Phase::Deleting && current.version == document.version {
            return Ok(current);
        }
        // A version that this node refused comes after the one that it holds.
        let refused = current.version < document.version && current.phase.is_settled();
        if current.version != document.version && !refused {
            return Err(stale(current.version, document.version));
        }
        let job_id =
            JobId::derived(&deployment, document.version, &format!("teardown {}", document.nonce));
        let mut task = current.clone();
        task.version = document.version;
        task.phase = Phase::Deleting;
        task.job = job_id;
        task.updated_at = clock::now_ms();
        let mut job = script_job(&task, Work::Teardown, UNDO_MS, TEARDOWN_ATTEMPTS);
        job.trace = Some(TraceId::of_payload(&verified.envelope.payload));
        let until = (document.expires, Allow::AsBefore);
        self.accept(verified, until, task, Some(&current), job).await
    }

    /// Notes that a version was deleted which never came: it may still be on its way, and must not
    /// be taken when it comes.
    async fn remember_deleted(
        &self,
        verified: &Verified,
        document: &DeleteDocument,
        held: Option<&Task>,
    ) -> Result<(), Failure> {
        let deployment = verified.document.deployment_id();
        let job = JobId::script(&deployment, document.version);
        let mut task = Task::new(deployment, document.version, job);
        task.phase = Phase::Deleted;
        task.updated_at = clock::now_ms();
        let request = Accept {
            task: &task,
            base: held.map(|t| (t.version, t.phase)),
            nonce: verified.document.nonce(),
            nonce_expires: document.expires,
            digest: &verified.digest,
            total: self.facts.capacity,
            allow: Allow::AsBefore,
            jobs: &[],
            events: &[],
        };
        // Refused when the node knows of this version's end already.
        self.queue.accept(request).await?;
        Ok(())
    }

    async fn accept(
        &self,
        verified: &Verified,
        (expires, allow): (i64, Allow),
        task: Task,
        current: Option<&Task>,
        job: Job,
    ) -> Result<Task, Failure> {
        let what = What::Phase { phase: task.phase, failure: None, outputs: None };
        let event = Event {
            at: task.updated_at,
            deployment: task.deployment.clone(),
            version: task.version,
            node: None,
            what,
        };
        let request = || Accept {
            task: &task,
            base: current.map(|t| (t.version, t.phase)),
            nonce: verified.document.nonce(),
            nonce_expires: expires,
            digest: &verified.digest,
            total: self.facts.capacity,
            allow,
            jobs: std::slice::from_ref(&job),
            events: std::slice::from_ref(&event),
        };
        loop {
            return match self.queue.accept(request()).await? {
                Acceptance::Beyond(beyond) => {
                    self.raise(task.deployment.account, &beyond).await?;
                    continue;
                }
                Acceptance::Accepted { .. } => Ok(task),
                Acceptance::Same(task) => Ok(task),
                Acceptance::Replayed => Err(replayed(verified.document.nonce())),
                Acceptance::Stale { current } => Err(stale(current, task.version)),
                Acceptance::Conflict { phase } => Err(Failure::new(
                    Code::Conflict,
                    format!("{} is {phase}; wait for its end, or delete it", task.deployment),
                )),
                Acceptance::Shortfall(shortfall) => Err(Failure::new(
                    Code::InsufficientCapacity,
                    format!("node {} is too full: {shortfall}", self.facts.id),
                )),
            };
        }
    }

    /// The addresses of the other nodes, from their keys.
    async fn peers(
        &self,
        document: &DeploymentDocument,
    ) -> Result<BTreeMap<NodeId, Ipv6Addr>, Failure> {
        let mut peers = BTreeMap::new();
        for id in document.placement.nodes.iter().filter(|id| **id != self.facts.id) {
            let node = self.ledger.node(*id).await?.ok_or_else(|| {
                Failure::new(Code::WrongNode, format!("the ledger has no node {id}"))
            })?;
            let address = mycelium_address(&node.key).ok_or_else(|| {
                Failure::new(Code::WrongNode, format!("node {id} has no usable key"))
            })?;
            peers.insert(*id, address);
        }
        Ok(peers)
    }

    fn foreign(&self) -> Failure {
        let message = format!("this is node {}, which the deployment does not name", self.facts.id);
        Failure::new(Code::WrongNode, message)
    }

    /// What is reserved, and what is free.
    pub async fn usage(&self) -> Result<rhizome_model::api::CapacityView, Failure> {
        let total: Capacity = self.facts.capacity;
        let reserved = self.queue.reserved().await?;
        Ok(rhizome_model::api::CapacityView {
            total,
            reserved,
            free: total.saturating_sub(reserved),
        })
    }
}

fn script_job(task: &Task, work: Work, timeout_ms: u64, max_attempts: u32) -> Job {
    Job {
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        max_attempts,
        timeout_ms,
        ..Job::new(task.job, queue_name(&work), task.deployment.account, work)
    }
}

pub(crate) fn replayed(nonce: &str) -> Failure {
    let message = format!("the nonce {nonce} was used before; sign again with a new one");
    Failure::new(Code::Replayed, message)
}

fn stale(current: rhizome_model::Version, asked: rhizome_model::Version) -> Failure {
    Failure::new(
        Code::StaleVersion,
        format!("the node holds version {current}, not one before {asked}; sign the next version"),
    )
}
