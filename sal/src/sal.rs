//! A node's system: brought up, opened by a runner, taken down.

use std::path::PathBuf;
use std::sync::Arc;

use rhizome_model::{Bytes, Capacity, Code, Cpu, WorkloadKind};
use serde::Serialize;

use crate::btrfs::Store;
use crate::cgroup::{Cgroups, Version};
use crate::error::{During, Result, SalError, shown};
use crate::lock::Lock;
use crate::node::{Mark, Node, NodeConfig};
use crate::oci::Runtime;
use crate::workload::{self, Workload};
use crate::{files, image, net, pool, program};

/// Kept for the node itself: a part of the whole, and not less than this.
const MEMORY_RESERVE: Reserve = Reserve { part: 16, least: Bytes::mib(256) };
/// Kept for btrfs itself and for images.
const DISK_RESERVE: Reserve = Reserve { part: 16, least: Bytes::mib(64) };

struct Reserve {
    part: u64,
    least: Bytes,
}

impl Reserve {
    fn of(&self, total: Bytes) -> Bytes {
        Bytes(total.0.saturating_sub((total.0 / self.part).max(self.least.0)))
    }
}

/// The system of one node. Cheap to clone.
#[derive(Clone)]
pub struct Sal {
    node: Arc<Node>,
}

/// What was chosen on this node, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    pub name: &'static str,
    pub value: String,
}

impl Sal {
    /// Brings the node up; what is up already, be it left by a process that was killed, is kept.
    pub async fn up(config: NodeConfig) -> std::result::Result<Self, SalError> {
        blocking(move || {
            prepare_folders(&config)?;
            let _lock = Lock::take(&config.locks().join("node"))?;
            let store = pool::up(&config)?;
            let node = assemble(config, store)?;
            Runtime::find(&node)?;
            net::up(&node.config, &node.mark)?;
            node.cgroups.prepare()?;
            image::sweep(&node)?;
            Ok(Self { node: Arc::new(node) })
        })
        .await
    }

    /// The node as [`Self::up`] has left it.
    pub async fn open(config: NodeConfig) -> std::result::Result<Self, SalError> {
        blocking(move || {
            let store = pool::open(&config)?;
            let node = assemble(config, store)?;
            if !net::is_up(&node.mark) {
                return Err(SalError::new(
                    Code::Unavailable,
                    format!(
                        "the node is not up (no bridge {}): start 'rhizome node' first",
                        node.mark.name
                    ),
                ));
            }
            Ok(Self { node: Arc::new(node) })
        })
        .await
    }

    /// Stops all machines and takes away what lives in the kernel. Data stays: after [`Self::up`]
    /// and `ensure` everything is back.
    pub async fn down(&self) -> std::result::Result<(), SalError> {
        let node = self.node.clone();
        blocking(move || {
            let _lock = Lock::take(&node.locks().join("node"))?;
            program::stop_all(&node)?;
            net::down(&node.mark)?;
            node.cgroups.remove()?;
            pool::down(&node.config)
        })
        .await
    }

    /// The driver of a kind.
    pub fn workload(&self, kind: WorkloadKind) -> Arc<dyn Workload> {
        workload::workload(&self.node, kind)
    }

    /// All that deployments can reserve.
    pub fn capacity(&self) -> std::result::Result<Capacity, SalError> {
        let cpus = std::thread::available_parallelism().during("count the processors")?;
        Ok(Capacity {
            cpu: Cpu::cores(u32::try_from(cpus.get()).unwrap_or(1024).min(1024)),
            memory: memory()?,
            disk: disk(&self.node.store)?,
        })
    }

    /// Which drivers, tools and modes this node works with.
    pub fn describe(&self) -> Vec<Fact> {
        let cgroups = match self.node.cgroups.version {
            Version::V1 => "v1 controllers",
            Version::V2 => "v2",
        };
        let kinds = workload::works_with(&self.node).into_iter();
        let mut facts: Vec<_> =
            kinds.map(|(kind, value)| Fact { name: kind.as_str(), value }).collect();
        facts.extend([
            Fact { name: "cgroups", value: cgroups.into() },
            Fact { name: "pool", value: shown(self.node.store.dir()).to_string() },
            Fact { name: "quota", value: self.node.store.quota.as_str().into() },
            Fact { name: "bridge", value: self.node.mark.name.clone() },
            Fact { name: "network", value: net::driver(&self.node.mark) },
        ]);
        facts
    }
}

/// What of the node's memory deployments can have.
pub(crate) fn memory() -> Result<Bytes> {
    Ok(MEMORY_RESERVE.of(memory_total()?))
}

/// What of a pool deployments can have.
pub(crate) fn disk(store: &Store) -> Result<Bytes> {
    Ok(DISK_RESERVE.of(store.total()?))
}

fn assemble(config: NodeConfig, store: Store) -> Result<Node> {
    let mark = Mark::new(config.key);
    let cgroups = Cgroups::detect(&mark.name)?;
    Ok(Node { config, mark, store, cgroups })
}

fn prepare_folders(config: &NodeConfig) -> Result<()> {
    let folders: [PathBuf; 4] = [
        config.locks(),
        config.state.join("logs"),
        config.state.join("run").join("machines"),
        config.state.join("run").join("runtime"),
    ];
    folders.iter().try_for_each(|folder| files::make_folder(folder))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(SalError::new(Code::Internal, format!("an operation on the node broke off: {e}")))
    })
}

/// The one number that we want of /proc/meminfo.
fn memory_total() -> Result<Bytes> {
    let text = std::fs::read_to_string("/proc/meminfo").during("read /proc/meminfo")?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    kib.map(|k| Bytes(k << 10)).ok_or_else(|| {
        SalError::new(Code::Internal, "/proc/meminfo does not say how much memory there is")
    })
}
