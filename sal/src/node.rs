//! One node: its configuration, its folders and its mark.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use rhizome_model::{Bytes, KeyId, ResourceId, WorkloadKind};

use crate::SalError;
use crate::btrfs::Store;
use crate::cgroup::Cgroups;

/// Everything that the SAL has to be told.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The node's public key. Its beginning is in every name, so several nodes can live on one host.
    pub key: KeyId,
    /// The node's address; its machines live in the same /64.
    pub address: Ipv6Addr,
    /// Our folder.
    pub state: PathBuf,
    pub pool: Pool,
    /// Started as `program machine-shim …`, it runs [`crate::machine_shim_main`].
    pub program: PathBuf,
    /// `file://` images must be inside one of these, links followed.
    pub image_roots: Vec<PathBuf>,
}

/// Where the btrfs file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pool {
    /// `<state>/pool.img`, made when it is not there, mounted on `<state>/pool`.
    LoopFile { size: Bytes },
    /// A block device with a btrfs on it, mounted on `<state>/pool`.
    Device(PathBuf),
    /// A folder of a btrfs that somebody else mounts.
    Mounted(PathBuf),
}

/// A node that is up.
#[derive(Debug)]
pub(crate) struct Node {
    pub config: NodeConfig,
    pub mark: Mark,
    pub store: Store,
    pub cgroups: Cgroups,
}

/// The names by which we know what is this node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// `rz` and 8 hexadecimal digits of the key: bridge, parent cgroup, prefix of namespaces.
    pub name: String,
    key: KeyId,
    /// Stands before the id in the names of one kind; machines have none.
    prefix: Option<&'static str>,
}

impl Mark {
    pub fn new(key: KeyId) -> Self {
        let mut name = format!("rz{key}");
        name.truncate(10);
        Self { name, key, prefix: None }
    }

    /// The mark of what is of one kind.
    pub fn of(&self, kind: WorkloadKind) -> Self {
        let prefix = match kind {
            WorkloadKind::Machine => None,
            other => Some(other.as_str()),
        };
        Self { prefix, ..self.clone() }
    }

    pub fn prefix(&self) -> Option<&'static str> {
        self.prefix
    }

    /// The network namespace of a resource: `rz<8 digits>.[KIND.]ACCOUNT.DEPLOYMENT.NAME`.
    pub fn netns(&self, id: &ResourceId) -> String {
        format!("{}{}", self.before('.'), id.file_name())
    }

    pub fn netns_resource(&self, name: &str) -> Option<ResourceId> {
        ResourceId::from_file_name(name.strip_prefix(&self.before('.'))?).ok()
    }

    /// The host's end of a resource's link: `rz` and 13 hexadecimal digits, 15 characters at most
    /// are allowed.
    pub fn link(&self, id: &ResourceId) -> String {
        let text = match self.prefix {
            Some(kind) => format!("{} {kind} {id}", self.key),
            None => format!("{} {id}", self.key),
        };
        format!("rz{}", &blake3::hash(text.as_bytes()).to_hex()[..13])
    }

    /// The TUN of the node's Mycelium daemon.
    pub fn tun(&self) -> String {
        format!("{}-my", self.name)
    }

    /// A link's alias, which says whose it is.
    pub fn alias(&self, id: &ResourceId) -> String {
        format!("rhizome:{}{id}", self.before(':'))
    }

    pub fn alias_resource(&self, alias: &str) -> Option<ResourceId> {
        let rest = alias.trim().strip_prefix("rhizome:")?;
        rest.strip_prefix(&self.before(':'))?.parse().ok()
    }

    fn before(&self, separator: char) -> String {
        let kind = self.prefix.map(|kind| format!("{kind}{separator}")).unwrap_or_default();
        format!("{}{separator}{kind}", self.name)
    }
}

impl NodeConfig {
    /// The folder below which the control groups of this node's runners belong, each with a name of
    /// its own: ending such a group ends a runner with all that it started, but no machine.
    pub fn runner_groups(&self) -> Result<PathBuf, SalError> {
        Ok(Cgroups::detect(&Mark::new(self.key).name)?.of_runners())
    }

    pub(crate) fn pool_dir(&self) -> PathBuf {
        match &self.pool {
            Pool::LoopFile { .. } | Pool::Device(_) => self.state.join("pool"),
            Pool::Mounted(path) => path.clone(),
        }
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.state.join("locks")
    }
}

impl Node {
    pub fn volumes(&self) -> PathBuf {
        self.data(WorkloadKind::Volume)
    }

    /// Where the data of one kind is.
    pub fn data(&self, kind: WorkloadKind) -> PathBuf {
        self.store.dir().join(folder_of(kind))
    }

    pub fn images(&self) -> PathBuf {
        self.store.dir().join("images")
    }

    pub fn locks(&self) -> PathBuf {
        self.config.locks()
    }

    /// What is known of the running programs of one kind: orders and records of their shims.
    pub fn run(&self, kind: WorkloadKind) -> PathBuf {
        self.config.state.join("run").join(folder_of(kind))
    }

    /// Where the container runtime keeps its own state.
    pub fn runtime_root(&self) -> PathBuf {
        self.config.state.join("run").join("runtime")
    }

    pub fn logs(&self) -> PathBuf {
        self.config.state.join("logs")
    }

    pub fn volume(&self, id: &ResourceId) -> PathBuf {
        named(&self.volumes(), id)
    }

    /// A volume on its way in, or out: it never has data that anybody wants.
    pub fn new_volume(&self, id: &ResourceId) -> PathBuf {
        self.volumes().join(format!("{NEW}{}", id.file_name()))
    }

    /// A folder for the snapshots of each volume, which has the name of the volume.
    pub fn snapshots(&self) -> PathBuf {
        self.store.dir().join("snapshots")
    }
}

/// The folder of one kind, in the pool and elsewhere.
pub(crate) fn folder_of(kind: WorkloadKind) -> String {
    format!("{kind}s")
}

/// Before the name of what is not whole.
pub(crate) const NEW: &str = ".new-";

fn named(folder: &Path, id: &ResourceId) -> PathBuf {
    folder.join(id.file_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_leads_back_to_its_resource_and_to_no_other_node() {
        let (mine, other) = (Mark::new(KeyId([7; 32])), Mark::new(KeyId([8; 32])));
        let id: ResourceId = "12/demo/web-1".parse().unwrap();
        assert_eq!(mine.netns(&id), "rz07070707.12.demo.web-1");
        assert_eq!(mine.netns_resource(&mine.netns(&id)), Some(id.clone()));
        assert_eq!(other.netns_resource(&mine.netns(&id)), None);
        assert_eq!(mine.alias_resource(&mine.alias(&id)), Some(id.clone()));
        assert_eq!(other.alias_resource(&mine.alias(&id)), None);
        assert_eq!(mine.link(&id).len(), 15);
        assert_ne!(mine.link(&id), other.link(&id));

        let volumes = mine.of(WorkloadKind::Volume);
        assert_eq!(mine.of(WorkloadKind::Machine), mine);
        assert_eq!(volumes.netns(&id), "rz07070707.volume.12.demo.web-1");
        assert_eq!(volumes.netns_resource(&volumes.netns(&id)), Some(id.clone()));
        assert_eq!(volumes.alias_resource(&volumes.alias(&id)), Some(id.clone()));
        assert_eq!(mine.netns_resource(&volumes.netns(&id)), None);
        assert_eq!(mine.alias_resource(&volumes.alias(&id)), None);
        assert_eq!(volumes.alias_resource(&mine.alias(&id)), None);
        assert_ne!(volumes.link(&id), mine.link(&id));
    }
}
