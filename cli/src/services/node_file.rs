//! `<state>/node.json`: what the processes of a node have to agree on. `node` writes it, the
//! supervisor and the runners read it. It holds no secret.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rhizome_model::{Bytes, Code, Failure, KeyId, Limits, NodeFacts};
use rhizome_queue::{Durability, QueueConfig};
use rhizome_sal::{NodeConfig, Pool};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    pub facts: NodeFacts,
    pub key: KeyId,
    pub network: String,
    pub ledger: String,
    /// The ledger's key, where it is known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger_key: Option<KeyId>,
    pub coordinators: Vec<KeyId>,
    /// Where the supervisor listens.
    pub listen: SocketAddr,
    /// The unix socket of the node's Redis.
    pub redis: PathBuf,
    #[serde(default)]
    pub durability: Durability,
    pub pool: PoolChoice,
    /// Images are taken from below these folders.
    pub images: Vec<PathBuf>,
    pub limits: Limits,
}

/// Where the node keeps volumes, images and root file systems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolChoice {
    /// A btrfs in a file of the state folder.
    File { size: Bytes },
    /// A block device with a btrfs of ours.
    Device(PathBuf),
    /// A btrfs that is mounted already.
    Mounted(PathBuf),
}

impl NodeFile {
    pub fn path(state: &Path) -> PathBuf {
        state.join("node.json")
    }

    pub fn read(state: &Path) -> Result<Self, Failure> {
        let path = Self::path(state);
        let text = std::fs::read(&path).map_err(|e| {
            let message = format!("cannot read {}: {e}; `rhizome node` writes it", path.display());
            Failure::new(Code::NotFound, message)
        })?;
        serde_json::from_slice(&text)
            .map_err(|e| Failure::new(Code::Internal, format!("{}: {e}", path.display())))
    }

    /// Replaces the file as a whole: a reader sees the old one or the new one.
    pub fn write(&self, state: &Path) -> Result<(), Failure> {
        let path = Self::path(state);
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Failure::new(Code::Internal, format!("{}: {e}", path.display())))?;
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path)).map_err(|e| {
            Failure::new(Code::StateNotWritable, format!("cannot write {}: {e}", path.display()))
        })
    }

    pub fn queue(&self) -> QueueConfig {
        QueueConfig { socket: self.redis.clone(), durability: self.durability }
    }

    pub fn sal(&self, state: &Path, program: PathBuf) -> NodeConfig {
        NodeConfig {
            key: self.key,
            address: self.facts.address,
            state: state.to_owned(),
            pool: match &self.pool {
                PoolChoice::File { size } => Pool::LoopFile { size: *size },
                PoolChoice::Device(device) => Pool::Device(device.clone()),
                PoolChoice::Mounted(path) => Pool::Mounted(path.clone()),
            },
            program,
            image_roots: self.images.clone(),
        }
    }

    /// Where runners keep outcomes while Redis is away.
    pub fn spool(state: &Path) -> PathBuf {
        state.join("spool")
    }

    /// The socket of the node's identity manager.
    pub fn identity_socket(state: &Path) -> PathBuf {
        state.join("identity.sock")
    }
}
