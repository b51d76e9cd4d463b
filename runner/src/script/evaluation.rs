//! The host of a real evaluation: what a script does is journaled, done and waited for.
//!
//! ```text
//!   effect ─▶ in the journal? ─yes▶ ended there: its result; else: waits for its job, whose end writes it
//!                  └──no──▶ to the writer, with its jobs ─▶ written ─▶ waits for its job
//! ```
//!
//! What a resource refers to is made before it because its job is after theirs: the order is kept by
//! the queue, and needs nobody who lives.

use std::collections::BTreeMap;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use futures_util::stream::{FuturesUnordered, StreamExt};
use rhizome_engine::{Host, HostError};
use rhizome_model::{
    Action, Code, DeploymentDocument, DeploymentId, Desired, DesiredResource, Effect, Failure,
    Journal, Name, NodeFacts, Outcome, resource_address,
};
use rhizome_queue::QueueError;
use serde_json::Value;
use tokio::sync::oneshot;

use super::causes::{Cause, together};
use super::operations::{Operations, Undone};
use super::writer::{Entry, Inbox, put};

/// Bytes that one script is told, as JSON: all of it is in its journal.
const MOST_TOLD: usize = 16 << 20;

/// The end of making one resource, for all who wait for it.
type Made = Shared<BoxFuture<'static, Result<Value, Unmade>>>;

#[derive(Clone)]
enum Unmade {
    Failed(Failure),
    /// The lease is lost, or what the queue says cannot be read.
    Lost(QueueError),
}

pub(super) struct Evaluating {
    deployment: DeploymentId,
    document: DeploymentDocument,
    facts: NodeFacts,
    /// What the node has held until now.
    before: Desired,
    operations: Operations,
    /// Of earlier attempts.
    journal: Journal,
    inbox: Inbox,
    resources: StdMutex<BTreeMap<Name, Making>>,
    broken: StdMutex<Vec<DesiredResource>>,
    /// Bytes that the script was told.
    told: AtomicUsize,
    /// Why it was aborted.
    loss: StdMutex<Option<QueueError>>,
}

#[derive(Clone)]
struct Making {
    resource: DesiredResource,
    needs: Vec<Name>,
    made: Made,
    /// Whether the script was told how it ended.
    told: bool,
}

impl Evaluating {
    pub(super) fn new(
        document: DeploymentDocument,
        facts: NodeFacts,
        before: Desired,
        operations: Operations,
        journal: Journal,
        inbox: Inbox,
    ) -> Self {
        let deployment = operations.deployment().clone();
        Self {
            deployment,
            document,
            facts,
            before,
            operations,
            journal,
            inbox,
            resources: StdMutex::default(),
            broken: StdMutex::default(),
            told: AtomicUsize::new(0),
            loss: StdMutex::default(),
        }
    }

    /// Starts making it; what it needs was declared before.
    fn start(&self, call: u64, resource: DesiredResource, replayed: bool) -> Result<(), HostError> {
        let needs = resource.kind.references(&resource.spec).map_err(HostError::Failed)?;
        let needs: Vec<Name> = needs.into_iter().map(|need| need.name).collect();
        let mut resources = locked(&self.resources);
        let mut after = Vec::new();
        for need in &needs {
            let making = resources.get(need).ok_or_else(|| absent(need))?;
            after.push(self.operations.make_id(&making.resource));
        }
        let jobs = self.operations.make_jobs(call, &resource, self.replaced_by(&resource), after);
        let made = match self.journal.results.get(&call) {
            Some(result) => {
                let result = value_of(result.outcome.clone());
                async move { result }.boxed()
            }
            None => {
                let written = self.begin(call, replayed, jobs.clone(), || Effect::Declare {
                    resource: resource.clone(),
                })?;
                self.ended(written, jobs)
            }
        };
        let made = made.shared();
        let name = resource.name.clone();
        resources.insert(name, Making { resource, needs, made, told: false });
        Ok(())
    }

    /// What is there under this name, if it is of another kind.
    fn replaced_by(&self, resource: &DesiredResource) -> Option<&DesiredResource> {
        self.before.get(&resource.name).filter(|old| old.kind != resource.kind)
    }

    /// Has an effect written, unless an earlier attempt did.
    fn begin(
        &self,
        call: u64,
        replayed: bool,
        jobs: Vec<rhizome_model::Job>,
        effect: impl FnOnce() -> Effect,
    ) -> Result<Option<oneshot::Receiver<Option<Failure>>>, HostError> {
        if replayed {
            return Ok(None);
        }
        let (written, answer) = oneshot::channel();
        put(&self.inbox, Entry { call, effect: effect(), jobs, written })?;
        Ok(Some(answer))
    }

    /// How the last of these jobs ends, once they are written.
    fn ended(
        &self,
        written: Option<oneshot::Receiver<Option<Failure>>>,
        jobs: Vec<rhizome_model::Job>,
    ) -> BoxFuture<'static, Result<Value, Unmade>> {
        let operations = self.operations.clone();
        async move {
            if let Some(written) = written {
                match written.await {
                    Ok(None) => {}
                    Ok(Some(refusal)) => return Err(Unmade::Failed(refusal)),
                    // The writer is gone, and says why.
                    Err(_) => return Err(Unmade::Lost(QueueError::Fenced)),
                }
            }
            operations.outcome_of(&jobs).await.map_err(Unmade::from)
        }
        .boxed()
    }

    fn making(&self, name: &Name) -> Result<Making, HostError> {
        locked(&self.resources).get(name).cloned().ok_or_else(|| absent(name))
    }

    /// Waits for a resource. What failed because of another says so.
    async fn wait(&self, making: &Making) -> Result<Value, Unmade> {
        let Err(Unmade::Failed(failure)) = making.made.clone().await else {
            return making.made.clone().await;
        };
        for need in &making.needs {
            let Ok(needed) = self.making(need) else { continue };
            if let Err(Unmade::Failed(cause)) = Box::pin(self.wait(&needed)).await {
                let name = &making.resource.name;
                let message = format!("'{name}' needs '{need}', which failed: {cause}");
                let failure = Failure::new(Code::DependencyFailed, message).about(name.clone());
                return Err(Unmade::Failed(failure));
            }
        }
        Err(Unmade::Failed(failure))
    }

    /// Tells the script, within its limit.
    fn tell(&self, result: Result<Value, Unmade>) -> Result<Value, HostError> {
        let json = match &result {
            Ok(value) => serde_json::to_string(value),
            Err(Unmade::Failed(failure)) => serde_json::to_string(failure),
            Err(Unmade::Lost(error)) => return Err(self.lost(error.clone())),
        };
        let bytes = json.map_or(0, |json| json.len());
        if self.told.fetch_add(bytes, Ordering::Relaxed) + bytes > MOST_TOLD {
            let message = format!("the script reads more than {} MiB", MOST_TOLD >> 20);
            return Err(HostError::Fatal(Failure::new(Code::ScriptLimit, message)));
        }
        result.map_err(|unmade| match unmade {
            Unmade::Failed(failure) => HostError::Failed(failure),
            Unmade::Lost(error) => self.lost(error),
        })
    }

    fn lost(&self, error: QueueError) -> HostError {
        locked(&self.loss).get_or_insert(error);
        HostError::Aborted
    }

    /// Why the evaluation was aborted; without another cause, because the lease was lost.
    pub(super) fn loss(&self) -> QueueError {
        locked(&self.loss).take().unwrap_or(QueueError::Fenced)
    }

    /// Waits for everything that is being made; what failed comes back. Once something failed that
    /// the script does not know of, or `stop` says so, nothing more begins.
    pub(super) async fn wait_for_all(&self, mut stop: bool) -> Result<Vec<Cause>, QueueError> {
        let all: Vec<Making> = locked(&self.resources).values().cloned().collect();
        if stop {
            self.stop_unbegun(&all).await?;
        }
        let wait = |making| async move { (making, self.wait(making).await) };
        let mut waiting: FuturesUnordered<_> = all.iter().map(wait).collect();
        let mut causes = Vec::new();
        while let Some((making, result)) = waiting.next().await {
            let failure = match result {
                Ok(_) => continue,
                Err(Unmade::Lost(error)) => return Err(error),
                Err(Unmade::Failed(failure)) => failure,
            };
            let (resource, caught) = (making.resource.clone(), making.told);
            causes.push(Cause { resource, failure, caught });
            if !caught && !std::mem::replace(&mut stop, true) {
                self.stop_unbegun(&all).await?;
            }
        }
        Ok(causes)
    }

    /// What the script declared and could not be made, though it went on: not part of the version.
    pub(super) fn into_broken(self) -> Vec<DesiredResource> {
        self.broken.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn stop_unbegun(&self, all: &[Making]) -> Result<(), QueueError> {
        for making in all {
            self.operations.stop_unbegun(&making.resource).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Host for Evaluating {
    async fn declare(&self, call: u64, resource: DesiredResource) -> Result<Value, HostError> {
        let effect = Effect::Declare { resource: resource.clone() };
        let replayed = self.journal.replay(call, &effect).map_err(HostError::Fatal)?.is_some();
        let id = self.deployment.resource(resource.name.clone());
        let address = resource_address(self.facts.address, &id);
        let predicted =
            resource.kind.predict(&resource.spec, address).map_err(HostError::Failed)?;
        self.start(call, resource, replayed)?;
        Ok(predicted)
    }

    async fn read(&self, name: &Name) -> Result<Value, HostError> {
        let making = self.making(name)?;
        let result = self.wait(&making).await;
        if let Some(making) = locked(&self.resources).get_mut(name) {
            making.told = true;
        }
        self.tell(result)
    }

    async fn act(&self, call: u64, name: &Name, action: Action) -> Result<Value, HostError> {
        let making = self.making(name)?;
        if let Err(unmade) = self.wait(&making).await {
            if let Some(making) = locked(&self.resources).get_mut(name) {
                making.told = true;
            }
            return self.tell(Err(unmade));
        }
        let effect = Effect::Act { resource: name.clone(), action: action.clone() };
        let replayed = self.journal.replay(call, &effect).map_err(HostError::Fatal)?.is_some();
        if let Some(result) = self.journal.results.get(&call) {
            return self.tell(value_of(result.outcome.clone()));
        }
        let jobs = vec![self.operations.act_job(call, &making.resource, action)];
        let written = self.begin(call, replayed, jobs.clone(), || effect)?;
        let result = self.ended(written, jobs).await;
        self.tell(result)
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

    async fn log(&self, call: u64, message: String) -> Result<(), HostError> {
        let effect = Effect::Log { message };
        let replayed = self.journal.replay(call, &effect).map_err(HostError::Fatal)?.is_some();
        self.begin(call, replayed, Vec::new(), || effect).map(|_| ())
    }

    async fn output(&self, _: String, _: Value) -> Result<(), HostError> {
        // Outputs travel together with the end: an evaluation that is repeated says them once.
        Ok(())
    }

    async fn finish(&self) -> Result<(), HostError> {
        let causes = self.wait_for_all(false).await.map_err(|error| self.lost(error))?;
        let (caught, causes): (Vec<_>, Vec<_>) = causes.into_iter().partition(|c| c.caught);
        *locked(&self.broken) = caught.into_iter().map(|cause| cause.resource).collect();
        together(None, causes).map_or(Ok(()), |failure| Err(HostError::Fatal(failure)))
    }
}

impl From<Undone> for Unmade {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::Failed(failure) => Self::Failed(failure),
            Undone::Lost(error) => Self::Lost(error),
        }
    }
}

fn value_of(outcome: Outcome) -> Result<Value, Unmade> {
    Operations::value_of(outcome).map_err(Unmade::from)
}

fn absent(name: &Name) -> HostError {
    HostError::Failed(Failure::new(Code::ScriptInvalid, format!("there is no '{name}'")))
}

/// Nothing panics while one of these is held.
fn locked<T>(mutex: &StdMutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
