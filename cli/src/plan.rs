//! What a deploy would do, foretold: the script is evaluated against what each node has now.
//!
//! ```text
//!   document ─▶ per node: what it has ─┐
//!                         script ──────┴─▶ planned ─▶ compared ─▶ rows, totals, would it be refused?
//! ```
//!
//! The comparison is the one by which the node itself decides.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use rhizome_engine::{Context, Peer, Plan, Sandboxes, Script};
use rhizome_model::api::PlanBase;
use rhizome_model::{
    Capacity, Code, Comparison, Demand, DeploymentDocument, DeploymentId, Desired, Failure, Limits,
    Name, NodeFacts, NodeId, PlanRow, PlanStep, Policy, Version, resource_address, secret,
};
use serde::Serialize;
use serde_json::Value;

use crate::coord::Coord;
use crate::error::Error;

/// What is printed with `--json` (docs/json.md).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Foretold {
    pub deployment: DeploymentId,
    pub version: Version,
    /// Whether a deploy would, or might, change something.
    pub changes: bool,
    pub nodes: Vec<NodePlan>,
    /// Why the first node would refuse it.
    #[serde(flatten)]
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodePlan {
    /// None for a plan without a server.
    pub node: Option<NodeId>,
    /// The version that the node has now.
    pub current: Option<Version>,
    /// False when the script needs a value that only execution knows: this is what comes before.
    pub complete: bool,
    pub resources: Vec<Row>,
    /// What the resources take when all are made.
    pub total: Capacity,
    /// What is reserved while it changes: of old and new, the larger.
    pub reserved: Capacity,
    /// What this deployment can have there.
    pub available: Option<Capacity>,
    pub outputs: BTreeMap<String, Value>,
    pub logs: Vec<String>,
    /// Why the node would refuse it.
    #[serde(flatten)]
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    #[serde(flatten)]
    pub row: PlanRow,
    /// Where it will answer, of those that have an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Value>,
}

impl Foretold {
    fn new(deployment: DeploymentId, version: Version, nodes: Vec<NodePlan>) -> Self {
        // What a plan does not see to its end may hold a change.
        let changes = |n: &NodePlan| {
            !n.complete || n.resources.iter().any(|r| r.row.step != PlanStep::Unchanged)
        };
        Self {
            changes: nodes.iter().any(changes),
            failure: nodes.iter().find_map(|n| n.failure.clone()),
            deployment,
            version,
            nodes,
        }
    }
}

/// Against what the nodes of the document have.
pub async fn on_nodes(
    coord: &Coord,
    sandboxes: &Sandboxes,
    file: &str,
    document: &DeploymentDocument,
) -> Result<Foretold, Error> {
    let deployment = DeploymentId { account: document.account, name: document.name.clone() };
    let nodes = &document.placement.nodes;
    let bases = try_join_all(nodes.iter().map(|node| coord.plan_base(*node, &deployment))).await?;
    let mut plans = Vec::new();
    for base in &bases {
        let others = bases.iter().filter(|b| b.facts.id != base.facts.id);
        let script = Script {
            file: file.to_owned(),
            source: document.script.clone(),
            context: Context {
                params: document.params.clone(),
                node: base.facts.clone(),
                deployment: deployment.clone(),
                version: document.version,
                peers: others
                    .map(|b| Peer { node: b.facts.id, address: b.facts.address })
                    .collect(),
            },
            limits: base.limits,
        };
        let mut plan = rhizome_engine::plan(sandboxes, &script).await?;
        for resource in &mut plan.resources {
            let sealed = |name: &str| document.secrets.get(name)?.get(&base.facts.id).cloned();
            resource.spec = secret::fill(&resource.spec, sealed);
        }
        plans.push(compare(document, &deployment, base, plan)?);
    }
    Ok(Foretold::new(deployment, document.version, plans))
}

/// Against nothing, on no particular node.
pub async fn from_nothing(
    sandboxes: &Sandboxes,
    file: &str,
    source: String,
    params: BTreeMap<String, Value>,
    deployment: DeploymentId,
) -> Result<Foretold, Error> {
    let context = Context::nowhere(params, deployment.clone());
    let version = context.version;
    let script = Script { file: file.to_owned(), source, context, limits: Limits::default() };
    let plan = rhizome_engine::plan(sandboxes, &script).await?;
    let rows = Comparison::new(&[], &plan.resources, plan.unseen(""), &Policy::default())?.rows;
    let rows = rows.into_iter().map(|row| Row { row, address: None });
    let node = node_plan(plan, rows.collect(), None)?;
    Ok(Foretold::new(deployment, version, vec![node]))
}

fn compare(
    document: &DeploymentDocument,
    deployment: &DeploymentId,
    base: &PlanBase,
    plan: Plan,
) -> Result<NodePlan, Failure> {
    let unseen = plan.unseen(&document.script);
    let comparison = Comparison::new(&base.resources, &plan.resources, unseen, &document.policy)?;
    let taken = comparison.check(&base.observed);
    let addresses = addresses(deployment, &base.facts, &plan)?;
    let rows = comparison.rows.into_iter().map(|row| {
        let address = match row.step {
            PlanStep::Delete { .. } => None,
            _ => addresses.get(&row.name).cloned(),
        };
        Row { row, address }
    });
    let node = node_plan(plan, rows.collect(), Some(base))?;
    let refused = admit(deployment, base, document.version, node.reserved).and(taken);
    Ok(NodePlan { failure: refused.err(), ..node })
}

/// In the order in which the node would say so.
fn admit(
    deployment: &DeploymentId,
    base: &PlanBase,
    version: Version,
    reserved: Capacity,
) -> Result<(), Failure> {
    if let Some(current) = base.version.filter(|current| *current >= version) {
        let message = format!(
            "node {} holds version {current} already, not one before {version}",
            base.facts.id
        );
        return Err(Failure::new(Code::StaleVersion, message));
    }
    if let Some(phase) = base.phase.filter(|phase| !phase.is_settled()) {
        let message = format!("{deployment} is {phase}; wait for its end, or delete it");
        return Err(Failure::new(Code::Conflict, message));
    }
    base.available.admit(reserved).map_err(|shortfall| {
        let message = format!("node {} is too full: {shortfall}", base.facts.id);
        Failure::new(Code::InsufficientCapacity, message)
    })?;
    let granted = base.granted.unwrap_or(reserved);
    granted.admit(reserved).map(drop).map_err(|shortfall| {
        let message = format!(
            "account {} was not granted so much on node {}: {shortfall}",
            deployment.account, base.facts.id
        );
        Failure::new(Code::NotGranted, message)
    })
}

fn addresses(
    deployment: &DeploymentId,
    node: &NodeFacts,
    plan: &Plan,
) -> Result<BTreeMap<Name, Value>, Failure> {
    let mut found = BTreeMap::new();
    for resource in &plan.resources {
        let id = deployment.resource(resource.name.clone());
        let address = resource_address(node.address, &id);
        let predicted = resource.kind.predict(&resource.spec, address)?;
        if let Some(address) = predicted.get("address") {
            found.insert(resource.name.clone(), address.clone());
        }
    }
    Ok(found)
}

fn node_plan(
    plan: Plan,
    resources: Vec<Row>,
    base: Option<&PlanBase>,
) -> Result<NodePlan, Failure> {
    let kept = base.map(|b| b.resources.clone()).unwrap_or_default();
    let mut demand = Demand::of(&Desired { version: None, resources: kept })?;
    for resource in &plan.resources {
        demand.add(resource)?;
    }
    Ok(NodePlan {
        node: base.map(|b| b.facts.id),
        current: base.and_then(|b| b.version),
        complete: plan.complete,
        resources,
        total: plan.total,
        reserved: demand.total(),
        available: base.map(|b| b.available),
        outputs: plan.outputs,
        logs: plan.logs,
        failure: None,
    })
}

#[cfg(test)]
mod tests {
    use rhizome_model::{Bytes, Cpu, DesiredResource, FarmId, Phase, WorkloadKind};
    use serde_json::json;

    use super::*;

    fn volume(name: &str, mib: u64) -> DesiredResource {
        let spec = json!({ "size": mib << 20 });
        DesiredResource { name: name.parse().unwrap(), kind: WorkloadKind::Volume, spec, line: 1 }
    }

    /// A node that has these, and of the volumes that are named so many MiB in use; nothing of others.
    fn base(resources: Vec<DesiredResource>, holding: &[(&str, u64)]) -> PlanBase {
        let observed = resources.iter().map(|r| {
            let held = holding.iter().find(|(name, _)| r.name.as_str() == *name);
            let status =
                held.map(|(_, mib)| json!({ "size": 0, "used": mib << 20, "empty": false }));
            (r.name.clone(), status.unwrap_or_default())
        });
        let observed = observed.collect();
        let capacity =
            Capacity { cpu: Cpu::cores(1), memory: Bytes::mib(64), disk: Bytes::mib(64) };
        PlanBase {
            facts: NodeFacts {
                id: NodeId(7),
                farm: FarmId(1),
                address: "5d3:7a10:1:2:3:4:5:6".parse().unwrap(),
                capacity,
            },
            limits: Limits::default(),
            version: Some(Version(1)),
            phase: Some(Phase::Ready),
            available: capacity,
            granted: None,
            resources,
            observed,
        }
    }

    fn plan_of(resources: Vec<DesiredResource>) -> Plan {
        Plan { resources, complete: true, ..Plan::default() }
    }

    fn node(base: &PlanBase, version: u64, plan: Plan) -> NodePlan {
        let document = json!({
            "account": 1, "name": "app", "version": version, "network": "dev", "script": "",
            "placement": { "nodes": [7] }, "expires": 1, "nonce": "0123456789abcdef",
        });
        let document = serde_json::from_value(document).unwrap();
        compare(&document, &"1/app".parse().unwrap(), base, plan).unwrap()
    }

    fn refused(base: &PlanBase, version: u64, plan: Plan) -> Option<Code> {
        node(base, version, plan).failure.map(|f| f.code)
    }

    #[test]
    fn what_the_node_would_refuse_is_foretold() {
        let full = base(vec![volume("data", 32)], &[("data", 9)]);
        let keeps = || plan_of(vec![volume("data", 32)]);
        assert_eq!(refused(&full, 2, keeps()), None);
        assert_eq!(refused(&full, 1, keeps()), Some(Code::StaleVersion));
        assert_eq!(refused(&full, 2, plan_of(vec![])), Some(Code::DataLoss));
        assert_eq!(refused(&full, 2, plan_of(vec![volume("data", 9)])), None);
        assert_eq!(refused(&full, 2, plan_of(vec![volume("data", 8)])), Some(Code::BelowUse));
        let half = Capacity { disk: Bytes::mib(40), ..full.available };
        let closed = PlanBase { granted: Some(half), ..full.clone() };
        assert_eq!(refused(&closed, 2, keeps()), None);
        let much = plan_of(vec![volume("data", 32), volume("more", 9)]);
        assert_eq!(refused(&closed, 2, much), Some(Code::NotGranted));
        let more = plan_of(vec![volume("data", 32), volume("more", 40)]);
        assert_eq!(refused(&full, 2, more), Some(Code::InsufficientCapacity));
        let busy = PlanBase { phase: Some(Phase::Running), ..full };
        assert_eq!(refused(&busy, 2, keeps()), Some(Code::Conflict));
        let empty = base(vec![volume("data", 32)], &[]);
        assert_eq!(refused(&empty, 2, plan_of(vec![])), None);
        // What goes is still there while the new comes.
        let swap = plan_of(vec![volume("other", 40)]);
        assert_eq!(refused(&empty, 2, swap), Some(Code::InsufficientCapacity));
    }

    #[test]
    fn what_is_not_seen_to_its_end_may_change_something() {
        let deployment: DeploymentId = "1/app".parse().unwrap();
        let with = |complete| {
            let plan = Plan { complete, ..plan_of(vec![volume("data", 8)]) };
            let base = base(vec![volume("data", 8)], &[]);
            Foretold::new(deployment.clone(), Version(2), vec![node(&base, 2, plan)]).changes
        };
        assert_eq!((with(true), with(false)), (false, true));
    }
}
