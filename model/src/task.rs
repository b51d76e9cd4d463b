//! A task: one deployment on one node, as the node keeps it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Capacity, DeploymentId, Document, Envelope, Failure, FarmId, JobId, Name, NodeId, Phase,
    Policy, Version, WorkloadKind,
};

/// One deployment on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Task {
    pub deployment: DeploymentId,
    pub version: Version,
    pub phase: Phase,
    /// The job that works on it now, or did last.
    pub job: JobId,
    /// The envelope of this version, as it came.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub envelope: String,
    /// The other nodes of the deployment and their addresses.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Object)]
    pub peers: BTreeMap<NodeId, Ipv6Addr>,
    /// What is reserved for it.
    pub reserved: Capacity,
    /// What the node keeps so: the resources of the newest version that succeeded.
    pub desired: Desired,
    /// What the version under way has declared so far.
    #[serde(default)]
    pub declared: Vec<DesiredResource>,
    /// What the script said with `output(…)`.
    #[serde(default)]
    pub outputs: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Why going back does not succeed, while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<Failure>,
    /// Unix milliseconds.
    pub updated_at: i64,
}

/// What a node keeps so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Desired {
    /// The version that declared it; none before the first success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// In the order of declaration: what a resource needs stands before it.
    pub resources: Vec<DesiredResource>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DesiredResource {
    pub name: Name,
    pub kind: WorkloadKind,
    /// Checked and complete.
    pub spec: Value,
    /// The line of the script that declares it.
    #[serde(default)]
    pub line: usize,
}

impl Desired {
    pub fn get(&self, name: &Name) -> Option<&DesiredResource> {
        self.resources.iter().find(|r| &r.name == name)
    }
}

impl Task {
    pub fn new(deployment: DeploymentId, version: Version, job: JobId) -> Self {
        Self {
            deployment,
            version,
            phase: Phase::Accepted,
            job,
            envelope: String::new(),
            peers: BTreeMap::new(),
            reserved: Capacity::default(),
            desired: Desired::default(),
            declared: Vec::new(),
            outputs: BTreeMap::new(),
            failure: None,
            stuck: None,
            updated_at: 0,
        }
    }

    /// The policy of this version; without a readable envelope, the usual one.
    pub fn policy(&self) -> Policy {
        let envelope = Envelope::from_json(self.envelope.as_bytes()).ok();
        let document =
            envelope.and_then(|e| Document::from_payload(&e.payload_type, &e.payload)?.ok());
        match document {
            Some(Document::Deployment(document)) => document.policy,
            _ => Policy::default(),
        }
    }

    /// Everything that may exist because of it, in the order of declaration.
    pub fn held(&self) -> Vec<&DesiredResource> {
        let declared: HashSet<_> = self.declared.iter().map(|d| &d.name).collect();
        let undeclared = |r: &&DesiredResource| !declared.contains(&r.name);
        self.desired.resources.iter().filter(undeclared).chain(&self.declared).collect()
    }

    /// What it takes while it changes from what is desired to `next`: of each resource the larger.
    pub fn demand_during(&self, next: &[DesiredResource]) -> Result<Capacity, Failure> {
        let mut demand = Demand::of(&self.desired)?;
        for resource in next {
            demand.add(resource)?;
        }
        Ok(demand.total())
    }
}

/// What a task takes while it changes: of what was and what comes under one name, the larger.
#[derive(Debug, Clone, Default)]
pub struct Demand {
    /// Of what no declaration has taken the place of yet.
    before: HashMap<Name, Capacity>,
    total: Capacity,
}

impl Demand {
    /// Before anything is declared.
    pub fn of(desired: &Desired) -> Result<Self, Failure> {
        let mut demand = Self::default();
        for resource in &desired.resources {
            let amount = resource.demand()?;
            demand.before.insert(resource.name.clone(), amount);
            demand.total = demand.total.saturating_add(amount);
        }
        Ok(demand)
    }

    /// One more declaration.
    pub fn add(&mut self, resource: &DesiredResource) -> Result<(), Failure> {
        let before = self.before.remove(&resource.name).unwrap_or_default();
        let more = resource.demand()?.saturating_sub(before);
        self.total = self.total.saturating_add(more);
        Ok(())
    }

    /// One that was added takes another spec; until the end it may need either.
    pub fn resize(&mut self, from: &DesiredResource, to: &Value) -> Result<(), Failure> {
        let more = from.kind.demand(to)?.saturating_sub(from.demand()?);
        self.total = self.total.saturating_add(more);
        Ok(())
    }

    pub fn total(&self) -> Capacity {
        self.total
    }
}

impl DesiredResource {
    pub fn demand(&self) -> Result<Capacity, Failure> {
        self.kind.demand(&self.spec)
    }
}

/// What a script sees as `node`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeFacts {
    pub id: NodeId,
    pub farm: FarmId,
    /// The node's own address; its machines live in the same /64.
    #[schema(value_type = String)]
    pub address: Ipv6Addr,
    /// All that deployments can reserve.
    pub capacity: Capacity,
}

/// What a script may use at most. A farm can lower these, never raise them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of source, checked before anything reads it.
    pub source: usize,
    /// Rhai operations.
    pub operations: u64,
    /// Nested calls.
    pub call_depth: usize,
    /// Bytes of a text.
    pub string: usize,
    /// Entries of an array.
    pub array: usize,
    /// Entries of a map.
    pub map: usize,
    /// Bytes of address space of the evaluating process.
    pub memory: u64,
    /// Milliseconds of processor time that one evaluation takes.
    pub cpu_ms: u64,
    /// Milliseconds from begin to end, waiting for resources included.
    pub wall_ms: u64,
    /// Declared resources.
    pub resources: usize,
    /// Lines logged and outputs set, each.
    pub messages: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            source: 64 << 10,
            operations: 5_000_000,
            call_depth: 32,
            string: 64 << 10,
            array: 4096,
            map: 1024,
            memory: 256 << 20,
            cpu_ms: 5_000,
            wall_ms: 10 * 60 * 1000,
            resources: 1000,
            messages: 1000,
        }
    }
}

impl Limits {
    /// Each limit the smaller of the two.
    #[must_use]
    pub fn lowered_by(self, other: Self) -> Self {
        Self {
            source: self.source.min(other.source),
            operations: self.operations.min(other.operations),
            call_depth: self.call_depth.min(other.call_depth),
            string: self.string.min(other.string),
            array: self.array.min(other.array),
            map: self.map.min(other.map),
            memory: self.memory.min(other.memory),
            cpu_ms: self.cpu_ms.min(other.cpu_ms),
            wall_ms: self.wall_ms.min(other.wall_ms),
            resources: self.resources.min(other.resources),
            messages: self.messages.min(other.messages),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Bytes;

    fn volume(name: &str, mib: u64) -> DesiredResource {
        DesiredResource {
            name: name.parse().unwrap(),
            kind: WorkloadKind::Volume,
            spec: json!({ "size": mib << 20 }),
            line: 1,
        }
    }

    #[test]
    fn a_change_takes_the_larger_of_old_and_new() {
        let mut task = Task::new("1/demo".parse().unwrap(), Version(1), JobId([0; 16]));
        task.desired.resources = vec![volume("kept", 10), volume("shrunk", 10), volume("gone", 10)];
        let next = [volume("kept", 10), volume("shrunk", 5), volume("new", 7)];
        let demand = task.demand_during(&next).unwrap();
        assert_eq!(demand.disk, Bytes::mib(10 + 10 + 10 + 7));
        task.declared = next.to_vec();
        let held: Vec<_> = task.held().iter().map(|r| r.name.to_string()).collect();
        assert_eq!(held, ["gone", "kept", "shrunk", "new"]);
    }
}
