//! Nodes for people.

use std::collections::BTreeMap;

use rhizome_model::api::{CapacityView, NetworkView, NodeIdentity, NodeStatus, NodeView};
use rhizome_model::{Bytes, NodeId};

use super::{clean, table};

/// One line each.
pub fn list(nodes: &[NodeView], shares: &BTreeMap<NodeId, f64>) -> String {
    let rows = nodes.iter().map(|node| {
        let free = |part: fn(&CapacityView) -> String| {
            node.capacity.as_ref().map_or_else(|| "-".to_owned(), part)
        };
        [
            node.id.to_string(),
            node.farm.to_string(),
            state(node),
            shares.get(&node.id).map_or_else(|| "-".to_owned(), percent),
            free(|c| format!("{} of {}", c.free.cpu, c.total.cpu)),
            free(|c| format!("{} of {}", c.free.memory, c.total.memory)),
            free(|c| format!("{} of {}", c.free.disk, c.total.disk)),
            node.address.to_string(),
        ]
    });
    table(
        ["NODE", "FARM", "STATE", "UP 30 DAYS", "FREE CPU", "FREE MEMORY", "FREE DISK", "ADDRESS"],
        rows,
    )
}

/// Never more than it was: all of the time is 100 %, and nothing else is.
fn percent(share: &f64) -> String {
    format!("{:.2} %", (share * 10_000.0).floor() / 100.0)
}

fn state(node: &NodeView) -> String {
    let word = match (node.online, node.reachable) {
        (true, true) => "up",
        (true, false) => "up, not reachable",
        (false, true) => "reachable, no uptime reports",
        (false, false) => "down",
    };
    match &node.problem {
        Some(problem) => format!("{word}: {}", clean(problem)),
        None => word.to_owned(),
    }
}

/// What the identity manager of this machine says.
pub fn identity(identity: &NodeIdentity) -> String {
    let mut lines = vec![match (&identity.registered, &identity.problem) {
        (Some(ids), None) => format!("node {} of farm {}: registered", ids.node, ids.farm),
        (Some(ids), Some(problem)) => {
            format!("node {} of farm {}: {}", ids.node, ids.farm, clean(problem))
        }
        (None, Some(problem)) => format!("not registered: {}", clean(problem)),
        (None, None) => "not registered yet".to_owned(),
    }];
    lines.push(format!("address  {}", identity.address));
    lines.push(format!("key id   {}", identity.key));
    lines.push(format!("sealed   {}", if identity.sealed { "to a TPM" } else { "no" }));
    for copy in &identity.copies {
        let state = copy.problem.as_deref().map_or_else(|| "good".into(), clean);
        lines.push(format!("copy     {}: {state}", clean(&copy.path)));
    }
    if identity.waiting_reports > 0 {
        lines.push(format!("reports  {} wait for the ledger", identity.waiting_reports));
    }
    lines.join("\n")
}

/// All of one, with its own view where it gives one.
pub fn show(node: &NodeView, status: Option<&NodeStatus>) -> String {
    let mut parts = vec![format!(
        "node {} of farm {}: {}\naddress  {}\nkey id   {}",
        node.id,
        node.farm,
        state(node),
        node.address,
        node.key
    )];
    parts.extend(status.and_then(|s| s.network.as_ref()).map(network));
    let usage = status.map(|s| s.usage).or(node.capacity);
    parts.extend(usage.as_ref().map(capacity));
    if let Some(status) = status.filter(|s| !s.pools.is_empty()) {
        let runners = status.pools.iter().flat_map(|pool| {
            pool.runners.iter().map(|runner| {
                [
                    runner.name.clone(),
                    pool.queues.join(" "),
                    runner.pid.to_string(),
                    runner.restarts.to_string(),
                ]
            })
        });
        parts.push(table(["RUNNER", "QUEUES", "PID", "RESTARTS"], runners));
    }
    parts.join("\n\n")
}

fn network(network: &NetworkView) -> String {
    let state = network.problem.as_deref().map_or_else(|| "well".to_owned(), clean);
    let mut lines = vec![format!("network  {}: {state}", clean(&network.driver))];
    if network.driver.starts_with("mycelium") {
        let NetworkView { routes, fallback_routes, restarts, traffic, .. } = network;
        lines.push(format!("routes   {routes}, and {fallback_routes} to fall back on"));
        lines.push(format!("routed   {} packets, {}", traffic.packets, Bytes(traffic.bytes)));
        if *restarts > 0 {
            lines.push(format!("restarts {restarts}"));
        }
    }
    let mut parts = vec![lines.join("\n")];
    if !network.peers.is_empty() {
        let rows = network.peers.iter().map(|peer| {
            let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            [
                clean(&peer.endpoint),
                word(serde_json::json!(peer.origin)),
                word(serde_json::json!(peer.state)),
                Bytes(peer.tx_bytes).to_string(),
                Bytes(peer.rx_bytes).to_string(),
            ]
        });
        parts.push(table(["PEER", "ORIGIN", "STATE", "SENT", "RECEIVED"], rows));
    }
    parts.join("\n\n")
}

fn capacity(usage: &CapacityView) -> String {
    let rows = [("total", usage.total), ("reserved", usage.reserved), ("free", usage.free)].map(
        |(what, c)| [what.to_owned(), c.cpu.to_string(), c.memory.to_string(), c.disk.to_string()],
    );
    table(["", "CPU", "MEMORY", "DISK"], rows)
}

#[cfg(test)]
mod tests {
    use rhizome_model::api::{
        PeerOrigin, PeerState, PeerView, PoolMode, PoolView, RunnerView, TrafficView,
    };
    use rhizome_model::{Capacity, Cpu, FarmId, KeyId, NodeFacts, NodeId};

    use super::*;

    fn usage() -> CapacityView {
        let total = Capacity { cpu: Cpu::cores(4), memory: Bytes::gib(8), disk: Bytes::gib(100) };
        let reserved =
            Capacity { cpu: Cpu::from_millis(1500), memory: Bytes::gib(1), disk: Bytes::gib(10) };
        CapacityView { total, reserved, free: total.saturating_sub(reserved) }
    }

    fn node() -> NodeView {
        NodeView {
            id: NodeId(1),
            farm: FarmId(1),
            key: KeyId([0xab; 32]),
            address: "5d3:7a10:1:2:3:4:5:6".parse().unwrap(),
            online: true,
            reachable: true,
            capacity: Some(usage()),
            problem: None,
        }
    }

    #[test]
    fn nodes_for_people() {
        let down = NodeView {
            id: NodeId(2),
            online: false,
            reachable: false,
            capacity: None,
            problem: Some("no uptime report for 40 min".into()),
            ..node()
        };
        insta::assert_snapshot!(list(&[node(), down], &BTreeMap::from([(node().id, 0.999_96)])));
    }

    fn mycelium() -> NetworkView {
        let peer = |endpoint: &str, state| PeerView {
            endpoint: endpoint.into(),
            origin: PeerOrigin::Configured,
            state,
            tx_bytes: 2048,
            rx_bytes: 512,
        };
        NetworkView {
            driver: "mycelium 0.7.10".into(),
            address: node().address,
            problem: None,
            restarts: 1,
            peers: vec![
                peer("tcp://192.0.2.1:9651", PeerState::Alive),
                peer("quic://192.0.2.2:9651", PeerState::Dead),
            ],
            routes: 12,
            fallback_routes: 3,
            traffic: TrafficView { packets: 42, bytes: 4096 },
        }
    }

    #[test]
    fn a_node_for_people() {
        let facts = NodeFacts {
            id: NodeId(1),
            farm: FarmId(1),
            address: node().address,
            capacity: usage().total,
        };
        let runners = vec![RunnerView { name: "machine-1".into(), pid: 42, restarts: 0 }];
        let (queues, mode) = (vec!["machine".into()], PoolMode::Running);
        let pools = vec![PoolView { queues, mode, scale: 1, runners }];
        let status =
            NodeStatus { facts, key: node().key, usage: usage(), pools, network: Some(mycelium()) };
        insta::assert_snapshot!(show(&node(), Some(&status)));
    }
}
