//! The trait that runners see, the typed one that drivers implement, and the registry between them.

use std::sync::Arc;

use async_trait::async_trait;
use rhizome_model::kind::Kind;
use rhizome_model::{Action, Code, ResourceId, WorkloadKind};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::SalError;
use crate::error::Result;
use crate::lock::Lock;
use crate::node::Node;

/// What something printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

/// One kind of workload on one node.
#[async_trait]
pub trait Workload: Send + Sync {
    /// Makes it so; answers the status. Also the update: in place where possible, else by replacing.
    async fn ensure(&self, id: &ResourceId, spec: &Value) -> std::result::Result<Value, SalError>;
    /// How it is; `None` when there is nothing of it.
    async fn observe(&self, id: &ResourceId) -> std::result::Result<Option<Value>, SalError>;
    /// Makes it be gone, with all that is left of it.
    async fn delete(&self, id: &ResourceId) -> std::result::Result<(), SalError>;
    /// Everything of this kind with our mark, whole or half, read from the system itself.
    async fn list(&self) -> std::result::Result<Vec<ResourceId>, SalError>;
    /// A named action; what it prints goes to `output` as it comes.
    async fn act(
        &self,
        id: &ResourceId,
        action: &Action,
        output: mpsc::Sender<Chunk>,
        cancel: CancellationToken,
    ) -> std::result::Result<Value, SalError>;
}

/// Takes what is printed; says whether more is wanted.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(Chunk) -> bool;

/// What a kind's module implements. Everything under it waits for the kernel or for a tool, so it
/// is plain blocking code; the adapter gives it a thread.
pub(crate) trait Driver: Send + Sync + 'static {
    type Kind: Kind;

    fn new(node: Arc<Node>) -> Self;
    fn ensure(&self, id: &ResourceId, spec: &Spec<Self>) -> Result<Status<Self>>;
    fn observe(&self, id: &ResourceId) -> Result<Option<Status<Self>>>;
    fn delete(&self, id: &ResourceId) -> Result<()>;
    fn list(&self) -> Result<Vec<ResourceId>>;

    /// Whether an action changes the resource, and so has to wait for its turn.
    fn changes(_action: &Action) -> bool {
        false
    }

    fn act(
        &self,
        id: &ResourceId,
        action: &Action,
        _sink: Sink<'_>,
        _cancel: &CancellationToken,
    ) -> Result<Value> {
        Err(SalError::new(
            Code::BadRequest,
            format!("{id} has no such action: {action:?} is for machines"),
        ))
    }
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
    async fn ensure(&self, id: &ResourceId, spec: &Value) -> Result<Value> {
        let spec = Spec::<D>::deserialize(spec)
            .map_err(|e| SalError::new(Code::InvalidSpec, format!("{id}: {e}")))?;
        D::Kind::check(&spec)
            .map_err(|e| SalError::new(Code::InvalidSpec, format!("{id}: {e}")))?;
        let id = id.clone();
        self.run(move |driver, lock| {
            let _lock = lock(&id)?;
            to_value(driver.ensure(&id, &spec)?)
        })
        .await
    }

    async fn observe(&self, id: &ResourceId) -> Result<Option<Value>> {
        let id = id.clone();
        self.run(move |driver, _| driver.observe(&id)?.map(to_value).transpose()).await
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

    async fn act(
        &self,
        id: &ResourceId,
        action: &Action,
        output: mpsc::Sender<Chunk>,
        cancel: CancellationToken,
    ) -> Result<Value> {
        let (id, action) = (id.clone(), action.clone());
        self.run(move |driver, lock| {
            let _lock = D::changes(&action).then(|| lock(&id)).transpose()?;
            let mut sink = |chunk| output.blocking_send(chunk).is_ok();
            driver.act(&id, &action, &mut sink, &cancel)
        })
        .await
    }
}

fn to_value<T: serde::Serialize>(value: T) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|e| SalError::new(Code::Internal, format!("write a status as JSON: {e}")))
}

macro_rules! registry {
    ($($module:ident: $kind:ident,)*) => {
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
