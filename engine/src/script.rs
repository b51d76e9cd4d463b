//! What is evaluated: a text, and what it sees.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use rhizome_model::{DeploymentId, Limits, NodeFacts, NodeId, Version};
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

/// Another node of the same deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Peer {
    pub node: NodeId,
    pub address: Ipv6Addr,
}
