//! What is evaluated: a text, and what it sees.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use rhizome_model::{
    Bytes, Capacity, Cpu, DeploymentId, FarmId, Limits, NodeFacts, NodeId, Version,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A script, its surroundings and its limits.
#[derive(Debug, Clone)]
pub struct Script {
    /// Shown in diagnostics.
    pub file: String,
    pub source: String,
    pub context: Context,
    pub limits: Limits,
}

/// What a script sees.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Context {
    pub params: BTreeMap<String, Value>,
    pub node: NodeFacts,
    pub deployment: DeploymentId,
    pub version: Version,
    /// The other nodes of the deployment.
    pub peers: Vec<Peer>,
}

impl Context {
    /// The first version of a deployment on a node that is not there, where nothing is too large.
    pub fn nowhere(params: BTreeMap<String, Value>, deployment: DeploymentId) -> Self {
        let plenty = Bytes(1 << 50);
        let node = NodeFacts {
            id: NodeId(1),
            farm: FarmId(1),
            // Of the range of Mycelium's addresses.
            address: Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 2),
            capacity: Capacity { cpu: Cpu::cores(1024), memory: plenty, disk: plenty },
        };
        Self { params, node, deployment, version: Version(1), peers: Vec::new() }
    }
}

/// Another node of the same deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Peer {
    pub node: NodeId,
    pub address: Ipv6Addr,
}
