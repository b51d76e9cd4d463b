//! The host of a real evaluation: what a script declares is journaled, made and waited for.
//!
//! The task's list of declarations is the journal: a declaration is written there, fenced, before
//! the job that makes it exists. An evaluation that repeats another one finds its declarations
//! there, and their jobs under the same ids.

use std::collections::BTreeMap;
use std::sync::Mutex as StdMutex;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use rhizome_engine::{Host, HostError};
use rhizome_model::api::OutputChunk;
use rhizome_model::{
    Action, Code, DeploymentDocument, DesiredResource, Failure, Name, NodeFacts, Phase, Task, What,
    resource_address,
};
use rhizome_queue::{Lease, QueueError};
use rhizome_service::clock;
use serde_json::Value;
use tokio::sync::Mutex;

use super::operations::{Operations, Undone};
use super::{event, undeclared};

/// The end of making one resource, for all who wait for it.
type Made = Shared<BoxFuture<'static, Result<Value, Unmade>>>;

#[derive(Clone)]
enum Unmade {
    Failed(Failure),
    Lost,
}

pub(super) struct Evaluating<'a> {
    lease: &'a Lease,
    document: DeploymentDocument,
    facts: NodeFacts,
    operations: Operations,
    journal: Mutex<Journal>,
    resources: StdMutex<BTreeMap<Name, Making>>,
    /// Why it was aborted.
    loss: StdMutex<Option<QueueError>>,
    /// Ends the making that nobody waits for any more.
    _running: tokio_util::sync::DropGuard,
    running: tokio_util::sync::CancellationToken,
}

struct Journal {
    task: Task,
    /// Declarations that this evaluation has repeated so far.
    replayed: usize,
}

struct Making {
    resource: DesiredResource,
    made: Made,
}

impl<'a> Evaluating<'a> {
    pub(super) fn new(
        lease: &'a Lease,
        task: Task,
        document: DeploymentDocument,
        facts: NodeFacts,
        operations: Operations,
    ) -> Self {
        let running = tokio_util::sync::CancellationToken::new();
        Self {
            lease,
            document,
            facts,
            operations,
            journal: Mutex::new(Journal { task, replayed: 0 }),
            resources: StdMutex::default(),
            loss: StdMutex::new(None),
            _running: running.clone().drop_guard(),
            running,
        }
    }

    pub(super) fn into_task(self) -> Task {
        self.journal.into_inner().task
    }

    /// Why the evaluation was aborted; without another cause, because the lease was lost.
    pub(super) fn loss(&self) -> QueueError {
        locked(&self.loss).take().unwrap_or(QueueError::Fenced)
    }

    /// Writes the declaration, unless an earlier attempt did.
    async fn record(&self, resource: &DesiredResource) -> Result<(), HostError> {
        let mut journal = self.journal.lock().await;
        let position = journal.replayed;
        journal.replayed += 1;
        if let Some(before) = journal.task.declared.get(position) {
            return if before == resource {
                Ok(())
            } else {
                Err(HostError::Failed(nondeterministic(before, resource)))
            };
        }
        let mut task = journal.task.clone();
        task.declared.push(resource.clone());
        let mut events = Vec::new();
        if task.phase != Phase::Running {
            task.phase = Phase::Running;
            events.push(event(
                &task,
                What::Phase { phase: Phase::Running, failure: None, outputs: None },
            ));
        }
        events.push(event(
            &task,
            What::Declared {
                resource: resource.name.clone(),
                kind: resource.kind,
                line: resource.line,
            },
        ));
        // What the plan could not foresee is reserved here, or refused.
        let demand = task.demand_during(&task.declared).map_err(HostError::Failed)?;
        task.reserved = larger(task.reserved, demand);
        task.updated_at = clock::now_ms();
        self.lease.update(&task, &events).await.map_err(|e| self.host_error(e))?;
        journal.task = task;
        Ok(())
    }

    /// Starts making it, after what it refers to.
    fn start(
        &self,
        resource: DesiredResource,
        replaced: Option<DesiredResource>,
    ) -> Result<(), HostError> {
        let needs = resource.kind.references(&resource.spec).map_err(HostError::Failed)?;
        let mut resources = locked(&self.resources);
        let mut before = Vec::new();
        for need in needs {
            let making = resources.get(&need.name).ok_or_else(|| {
                let message = format!("{}: there is no {} '{}'", need.field, need.kind, need.name);
                HostError::Failed(Failure::new(Code::ScriptInvalid, message))
            })?;
            before.push((need.name, making.made.clone()));
        }
        let operations = self.operations.clone();
        let stop = self.running.clone();
        let declared = resource.clone();
        let work = async move {
            for (name, made) in before {
                made.await.map_err(|unmade| dependency(&name, &declared.name, unmade))?;
            }
            if let Some(old) = replaced {
                operations.delete_all(&[old], "replace").await.map_err(Unmade::from)?;
            }
            operations.make(&declared).await.map_err(Unmade::from)
        };
        let task = tokio::spawn(async move {
            tokio::select! {
                result = work => result,
                () = stop.cancelled() => Err(Unmade::Lost),
            }
        });
        let made = task.map(|joined| joined.unwrap_or(Err(Unmade::Lost))).boxed().shared();
        resources.insert(resource.name.clone(), Making { resource, made });
        Ok(())
    }

    fn made(&self, name: &Name) -> Result<(DesiredResource, Made), HostError> {
        locked(&self.resources).get(name).map(|m| (m.resource.clone(), m.made.clone())).ok_or_else(
            || {
                HostError::Failed(Failure::new(
                    Code::ScriptInvalid,
                    format!("there is no '{name}'"),
                ))
            },
        )
    }

    fn host_error(&self, error: QueueError) -> HostError {
        match error {
            QueueError::Shortfall(shortfall) => HostError::Failed(Failure::new(
                Code::InsufficientCapacity,
                format!("the node is too full: {shortfall}"),
            )),
            other => {
                locked(&self.loss).get_or_insert(other);
                HostError::Aborted
            }
        }
    }

    async fn say(&self, what: What) -> Result<(), HostError> {
        let journal = self.journal.lock().await;
        let events = [event(&journal.task, what)];
        self.lease.update(&journal.task, &events).await.map_err(|e| self.host_error(e))
    }
}

#[async_trait]
impl Host for Evaluating<'_> {
    async fn declare(&self, _call: u64, resource: DesiredResource) -> Result<Value, HostError> {
        self.record(&resource).await?;
        let replaced = {
            let journal = self.journal.lock().await;
            undeclared(&journal.task.desired.resources, std::slice::from_ref(&resource))
                .into_iter()
                .find(|old| old.name == resource.name)
        };
        let id = self.lease.job.deployment.as_ref().map(|d| d.resource(resource.name.clone()));
        let address = id.map(|id| resource_address(self.facts.address, &id));
        let predicted = match address {
            Some(address) => {
                resource.kind.predict(&resource.spec, address).map_err(HostError::Failed)?
            }
            None => Value::Null,
        };
        self.start(resource, replaced)?;
        Ok(predicted)
    }

    async fn read(&self, name: &Name) -> Result<Value, HostError> {
        let (_, made) = self.made(name)?;
        made.await.map_err(HostError::from)
    }

    async fn act(&self, call: u64, name: &Name, action: Action) -> Result<Value, HostError> {
        let (resource, made) = self.made(name)?;
        made.await.map_err(HostError::from)?;
        let result = self.operations.act(call, &resource, action).await;
        result.map_err(|undone| Unmade::from(undone).into())
    }

    async fn secret(&self, name: &str) -> Result<String, HostError> {
        let id = &self.facts.id;
        let sealed =
            self.document.secrets.get(name).and_then(|nodes| nodes.get(id)).ok_or_else(|| {
                let message = format!(
                    "the deployment has no secret '{name}' for node {id}; give it with --secret"
                );
                HostError::Failed(Failure::new(Code::ScriptError, message))
            })?;
        let context = format!("{}/{}/{name}", self.document.account, self.document.name);
        Ok(crate::sealed::token(&context, sealed))
    }

    async fn log(&self, message: String) -> Result<(), HostError> {
        let line = OutputChunk::Stdout { data: STANDARD.encode(format!("{message}\n")) };
        self.say(What::Log { message }).await?;
        // Who looks at the job sees it too.
        self.lease.print(&line).await.map_err(|e| self.host_error(e))
    }

    async fn output(&self, key: String, value: Value) -> Result<(), HostError> {
        // Outputs travel together with the end: an evaluation that is repeated says them once.
        let mut journal = self.journal.lock().await;
        journal.task.outputs.insert(key, value);
        Ok(())
    }

    async fn finish(&self) -> Result<(), HostError> {
        let all: Vec<_> = locked(&self.resources).values().map(|m| m.made.clone()).collect();
        let mut failures = Vec::new();
        for made in all {
            match made.await {
                Ok(_) => {}
                Err(Unmade::Failed(failure)) => failures.push(failure),
                Err(Unmade::Lost) => return Err(HostError::Aborted),
            }
        }
        // What failed because of another is a consequence, not a cause.
        failures.sort_by_key(|f| f.code == Code::DependencyFailed);
        let Some(first) = failures.first().cloned() else { return Ok(()) };
        let rest: Vec<_> = failures[1..].iter().map(ToString::to_string).collect();
        let failure = if rest.is_empty() { first } else { first.with_detail(rest.join("\n")) };
        Err(HostError::Failed(failure))
    }
}

impl From<Undone> for Unmade {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::Failed(failure) => Self::Failed(failure),
            Undone::Lost(_) => Self::Lost,
        }
    }
}

impl From<Unmade> for HostError {
    fn from(unmade: Unmade) -> Self {
        match unmade {
            Unmade::Failed(failure) => Self::Failed(failure),
            Unmade::Lost => Self::Aborted,
        }
    }
}

fn dependency(needed: &Name, by: &Name, unmade: Unmade) -> Unmade {
    match unmade {
        Unmade::Failed(cause) => {
            let message = format!("'{by}' needs '{needed}', which failed: {cause}");
            Unmade::Failed(Failure::new(Code::DependencyFailed, message).about(by.clone()))
        }
        Unmade::Lost => Unmade::Lost,
    }
}

fn nondeterministic(before: &DesiredResource, now: &DesiredResource) -> Failure {
    let message = format!(
        "line {}: an earlier evaluation declared {} '{}' here (line {}), this one declares {} '{}' or another spec",
        now.line, before.kind, before.name, before.line, now.kind, now.name
    );
    Failure::new(Code::NondeterministicScript, message)
}

fn larger(a: rhizome_model::Capacity, b: rhizome_model::Capacity) -> rhizome_model::Capacity {
    a.saturating_add(b.saturating_sub(a))
}

/// Nothing panics while one of these is held.
fn locked<T>(mutex: &StdMutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
