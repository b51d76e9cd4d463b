//! The trait that runners see, the typed one that drivers implement, and the registry between them.

use std::sync::Arc;

use async_trait::async_trait;
use rhizome_model::kind::{Change, Kind, change};
use rhizome_model::{Action, Code, Done, Drift, Drifted, Repair, ResourceId, WorkloadKind};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::SalError;
use crate::error::Result;
use crate::lock::Lock;
use crate::node::Node;
use crate::pool;
use crate::program::Untold;

/// What something printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

/// What came of making a resource so.
#[derive(Debug, Clone, PartialEq)]
pub struct Ensured {
    pub status: Value,
    pub done: Done,
}

/// One kind of workload on one node.
#[async_trait]
pub trait Workload: Send + Sync {
    /// Makes it so. Also the update, in place or by replacing, as the kind's `fixed` says.
    async fn ensure(&self, id: &ResourceId, spec: &Value)
    -> std::result::Result<Ensured, SalError>;
    /// How it is; `None` when there is nothing of it.
    async fn observe(&self, id: &ResourceId) -> std::result::Result<Option<Value>, SalError>;
    /// The same, with all counted that was written before.
    async fn observe_exactly(
        &self,
        id: &ResourceId,
    ) -> std::result::Result<Option<Value>, SalError>;
    /// Makes it be gone, with all that is left of it.
    async fn delete(&self, id: &ResourceId) -> std::result::Result<(), SalError>;
    /// Everything of this kind with our mark, whole or half, read from the system itself.
    async fn list(&self) -> std::result::Result<Vec<ResourceId>, SalError>;
    /// Sees how it is, and puts right what is not as the spec says.
    async fn keep(&self, id: &ResourceId, spec: &Value) -> std::result::Result<Kept, SalError>;
    /// What it came to by itself and nobody has told of yet. Others who ask for it wait until this
    /// is dropped.
    async fn untold(&self, id: &ResourceId) -> std::result::Result<Option<Untold>, SalError>;
    /// Notices from now on what changes by itself; also what may have changed before.
    fn watch(&self) -> std::result::Result<Option<mpsc::Receiver<Notice>>, SalError>;
    /// A named action; what it prints goes to `output` as it comes. `by` tells a repetition, which
    /// changes nothing, from another who asks for the same.
    async fn act(
        &self,
        id: &ResourceId,
        action: &Action,
        by: &str,
        output: mpsc::Sender<Chunk>,
        cancel: CancellationToken,
    ) -> std::result::Result<Value, SalError>;
}

/// How a resource is after it was looked at, and what was put right.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    pub status: Value,
    pub drifted: Vec<Drifted>,
}

/// That a resource is not as it was. Of two with the same words the second is no news.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    pub id: ResourceId,
    pub what: String,
}

/// Something that differs from what it should be, and why, if known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub drift: Drift,
    pub cause: Option<String>,
}

impl Found {
    pub fn new(drift: Drift, cause: impl Into<String>) -> Self {
        Self { drift, cause: Some(cause.into()) }
    }

    pub fn and_done(self, action: Repair) -> Drifted {
        Drifted { drift: self.drift, action, cause: self.cause, retry_in_ms: None }
    }
}

/// Takes what is printed; says whether more is wanted.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(Chunk) -> bool;

/// What a kind's module implements. Everything under it waits for the kernel or for a tool, so it
/// is plain blocking code; the adapter gives it a thread.
pub(crate) trait Driver: Send + Sync + 'static {
    type Kind: Kind;

    fn new(node: Arc<Node>) -> Self;

    /// What it works with on this node, or why it does not.
    fn works_with(_node: &Node) -> Option<String> {
        None
    }

    fn ensure(&self, id: &ResourceId, spec: &Spec<Self>) -> Result<(Status<Self>, Done)>;
    /// The spec that it is as; `None` when there is nothing of it, or only half of it.
    fn applied(&self, id: &ResourceId) -> Result<Option<Spec<Self>>>;
    fn observe(&self, id: &ResourceId) -> Result<Option<Status<Self>>>;
    fn delete(&self, id: &ResourceId) -> Result<()>;
    fn list(&self) -> Result<Vec<ResourceId>>;

    /// Sees what is not as the spec says, and changes nothing.
    fn drift(&self, id: &ResourceId, spec: &Spec<Self>) -> Result<Vec<Found>>;
    /// Puts right what was found.
    fn mend(&self, id: &ResourceId, spec: &Spec<Self>, found: Found) -> Result<Drifted>;

    fn keep(&self, id: &ResourceId, spec: &Spec<Self>) -> Result<(Status<Self>, Vec<Drifted>)> {
        let mut drifted = Vec::new();
        for found in self.drift(id, spec)? {
            drifted.push(self.mend(id, spec, found)?);
        }
        let status = self.observe(id)?.ok_or_else(|| {
            SalError::new(Code::Internal, format!("{id} is not there though it was looked after"))
        })?;
        Ok((status, drifted))
    }

    fn untold(&self, _id: &ResourceId) -> Result<Option<Untold>> {
        Ok(None)
    }

    fn watch(&self) -> Result<Option<mpsc::Receiver<Notice>>> {
        Ok(None)
    }

    /// Whether an action changes the resource, and so has to wait for its turn.
    fn changes(_action: &Action) -> bool {
        false
    }

    fn act(
        &self,
        id: &ResourceId,
        action: &Action,
        _by: &str,
        _sink: Sink<'_>,
        _cancel: &CancellationToken,
    ) -> Result<Value> {
        Err(no_such_action(id, action))
    }
}

pub(crate) fn no_such_action(id: &ResourceId, action: &Action) -> SalError {
    SalError::new(
        Code::BadRequest,
        format!("{} is nothing that can be done with {id}", action.word()),
    )
}

type Spec<D> = <<D as Driver>::Kind as Kind>::Spec;
type Status<D> = <<D as Driver>::Kind as Kind>::Status;

struct Adapter<D> {
    driver: Arc<D>,
    node: Arc<Node>,
    kind: WorkloadKind,
}

impl<D: Driver> Adapter<D> {
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&D, &dyn Fn(&ResourceId) -> Result<Lock>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (driver, node, kind) = (self.driver.clone(), self.node.clone(), self.kind);
        let lock = move |id: &ResourceId| {
            Lock::take(&node.locks().join(format!("{kind}.{}", id.file_name())))
        };
        tokio::task::spawn_blocking(move || work(&driver, &lock)).await.unwrap_or_else(|e| {
            Err(SalError::new(Code::Internal, format!("an operation on a {kind} broke off: {e}")))
        })
    }
}

#[async_trait]
impl<D: Driver> Workload for Adapter<D> {
    async fn ensure(&self, id: &ResourceId, spec: &Value) -> Result<Ensured> {
        let (id, spec, node) = (id.clone(), parse::<D>(id, spec)?, self.node.clone());
        self.run(move |driver, lock| {
            let _lock = lock(&id)?;
            has_room(driver, &node, &id, &spec)?;
            let (status, done) = driver.ensure(&id, &spec)?;
            Ok(Ensured { status: to_value(status)?, done })
        })
        .await
    }

    async fn observe(&self, id: &ResourceId) -> Result<Option<Value>> {
        let id = id.clone();
        self.run(move |driver, _| driver.observe(&id)?.map(to_value).transpose()).await
    }

    async fn observe_exactly(&self, id: &ResourceId) -> Result<Option<Value>> {
        let (id, node) = (id.clone(), self.node.clone());
        self.run(move |driver, _| {
            node.store.sync()?;
            driver.observe(&id)?.map(to_value).transpose()
        })
        .await
    }

    async fn delete(&self, id: &ResourceId) -> Result<()> {
        let id = id.clone();
        self.run(move |driver, lock| {
            let lock = lock(&id)?;
            driver.delete(&id)?;
            lock.remove()
        })
        .await
    }

    async fn list(&self) -> Result<Vec<ResourceId>> {
        self.run(|driver, _| driver.list()).await
    }

    async fn keep(&self, id: &ResourceId, spec: &Value) -> Result<Kept> {
        let (id, spec, node) = (id.clone(), parse::<D>(id, spec)?, self.node.clone());
        self.run(move |driver, lock| {
            // First: without it everything would seem to be gone.
            let mounted = pool::mend(&node.config)?;
            let _lock = lock(&id)?;
            let (status, mut drifted) = driver.keep(&id, &spec)?;
            if mounted {
                let found = Found::new(Drift::Mount, "the node's pool was not mounted");
                drifted.insert(0, found.and_done(Repair::Restored));
            }
            Ok(Kept { status: to_value(status)?, drifted })
        })
        .await
    }

    async fn untold(&self, id: &ResourceId) -> Result<Option<Untold>> {
        let id = id.clone();
        self.run(move |driver, _| driver.untold(&id)).await
    }

    fn watch(&self) -> Result<Option<mpsc::Receiver<Notice>>> {
        self.driver.watch()
    }

    async fn act(
        &self,
        id: &ResourceId,
        action: &Action,
        by: &str,
        output: mpsc::Sender<Chunk>,
        cancel: CancellationToken,
    ) -> Result<Value> {
        let (id, action, by) = (id.clone(), action.clone(), by.to_owned());
        self.run(move |driver, lock| {
            let _lock = D::changes(&action).then(|| lock(&id)).transpose()?;
            let mut sink = |chunk| output.blocking_send(chunk).is_ok();
            driver.act(&id, &action, &by, &mut sink, &cancel)
        })
        .await
    }
}

/// Refuses a spec that shrinks a resource below what it holds.
fn has_room<D: Driver>(driver: &D, node: &Node, id: &ResourceId, spec: &Spec<D>) -> Result<()> {
    let Some(old) = driver.applied(id)? else { return Ok(()) };
    let in_place = matches!(change::<D::Kind>(&old, spec), Change::Update(_));
    if !in_place || !D::Kind::shrinks(&old, spec) {
        return Ok(());
    }
    node.store.sync()?;
    let Some(status) = driver.observe(id)? else { return Ok(()) };
    D::Kind::fits(&old, spec, &status)
        .map_err(|why| SalError::new(Code::BelowUse, format!("{id}: {why}")))
}

fn parse<D: Driver>(id: &ResourceId, spec: &Value) -> Result<Spec<D>> {
    let invalid = |e: String| SalError::new(Code::InvalidSpec, format!("{id}: {e}"));
    let spec = Spec::<D>::deserialize(spec).map_err(|e| invalid(e.to_string()))?;
    D::Kind::check(&spec).map_err(invalid)?;
    Ok(spec)
}

pub(crate) fn to_value<T: serde::Serialize>(value: T) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|e| SalError::new(Code::Internal, format!("write a status as JSON: {e}")))
}

macro_rules! registry {
    ($($module:ident: $kind:ident,)*) => {
        /// What each kind works with here, where that was chosen.
        pub(crate) fn works_with(node: &Node) -> Vec<(WorkloadKind, String)> {
            let mut all = Vec::new();
            $(all.extend(
                <crate::$module::Driver as Driver>::works_with(node)
                    .map(|what| (WorkloadKind::$kind, what)),
            );)*
            all
        }

        /// The driver of a kind.
        pub(crate) fn workload(node: &Arc<Node>, kind: WorkloadKind) -> Arc<dyn Workload> {
            match kind {
                $(WorkloadKind::$kind => Arc::new(Adapter {
                    driver: Arc::new(crate::$module::Driver::new(node.clone())),
                    node: node.clone(),
                    kind,
                }),)*
            }
        }
    };
}
rhizome_model::for_each_kind!(registry);
