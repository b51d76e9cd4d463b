use proptest::prelude::*;
use rhizome_model::api::CapacityView;
use rhizome_model::{Bytes, Capacity, FarmId, KeyId, payload_type};
use serde_json::json;

use super::*;

fn deployment(version: u64, nodes: &[u64]) -> Document {
    let payload = json!({
        "account": 1, "name": "demo", "version": version, "network": "dev", "script": "",
        "placement": { "nodes": nodes }, "expires": 2_000_000_000, "nonce": "0123456789abcdef",
    });
    Document::from_payload(payload_type::DEPLOYMENT, payload.to_string().as_bytes())
        .unwrap()
        .unwrap()
}

fn delete(version: u64) -> Document {
    let payload = json!({
        "account": 1, "name": "demo", "version": version, "network": "dev",
        "expires": 2_000_000_000, "nonce": "0123456789abcdef",
    });
    Document::from_payload(payload_type::DELETE, payload.to_string().as_bytes()).unwrap().unwrap()
}

fn current(version: u64, tasks: &[(u64, Phase, bool)]) -> Current {
    let task = |&(node, phase, holds)| CurrentTask { node: NodeId(node), phase, holds };
    Current { version: Version(version), tasks: tasks.iter().map(task).collect() }
}

#[test]
fn what_may_be_submitted() {
    use Phase::*;
    let ready = current(2, &[(1, Ready, true), (2, Failed, true)]);
    let busy = current(2, &[(1, Ready, true), (2, Running, true)]);
    let refused = current(2, &[(1, Ready, true), (2, Refused, false)]);
    let gone = current(2, &[(1, Deleted, false)]);
    let going = current(2, &[(1, Deleting, true)]);
    for (document, current, expected) in [
        (deployment(1, &[1]), None, Ok(())),
        (deployment(2, &[1, 2]), Some(&ready), Err(Code::StaleVersion)),
        (deployment(3, &[1, 2]), Some(&ready), Ok(())),
        (deployment(3, &[1]), Some(&ready), Err(Code::Conflict)),
        (deployment(3, &[1, 2, 3]), Some(&ready), Ok(())),
        (deployment(3, &[1]), Some(&refused), Ok(())),
        (deployment(2, &[1, 2]), Some(&busy), Err(Code::StaleVersion)),
        (deployment(3, &[1, 2]), Some(&busy), Err(Code::Conflict)),
        (deployment(3, &[5]), Some(&gone), Ok(())),
        (deployment(3, &[1]), Some(&going), Err(Code::Conflict)),
        (delete(1), None, Err(Code::NotFound)),
        (delete(2), Some(&gone), Err(Code::NotFound)),
        (delete(2), Some(&busy), Ok(())),
        (delete(2), Some(&going), Ok(())),
        (delete(1), Some(&ready), Err(Code::StaleVersion)),
        (delete(3), Some(&ready), Err(Code::StaleVersion)),
    ] {
        let verdict = admit(&document, current).map_err(|f| f.code);
        assert_eq!(verdict, expected, "{document:?} on {current:?}");
    }
}

#[test]
fn a_node_moves_forward_only() {
    use Phase::*;
    for (from, to, may) in [
        (Pending, Ready, true),
        (Pending, Refused, true),
        (Accepted, Ready, true),
        (Accepted, Refused, false),
        (Running, Failed, true),
        (Ready, Ready, false),
        (Ready, Accepted, false),
        (Ready, Deleted, true),
        (Deleting, Ready, false),
        (Deleting, Deleted, true),
        (Deleted, Accepted, false),
        (Failed, Running, false),
    ] {
        assert_eq!(moves(from, to), may, "{from} to {to}");
    }
}

proptest! {
    /// Whatever order reports come in, and however often, a task never goes back.
    #[test]
    fn repeated_and_late_reports_change_nothing(reports in proptest::collection::vec(0..8usize, 0..30)) {
        let mut phase = Phase::Pending;
        let mut been = vec![phase];
        for report in reports {
            let said = Phase::ALL[report];
            if moves(phase, said) {
                prop_assert!(!been.contains(&said));
                been.push(said);
                phase = said;
            }
        }
    }
}

fn held(phase: Phase, good: Option<&str>) -> Held {
    Held { version: Version(2), phase, delivered: true, good: good.map(Into::into) }
}

fn seen(version: u64, phase: Phase) -> TaskView {
    TaskView {
        deployment: "1/demo".parse().unwrap(),
        version: Version(version),
        node: NodeId(1),
        phase,
        failure: None,
        outputs: Default::default(),
        resources: Vec::new(),
        reserved: Capacity::default(),
        waiting_for: None,
    }
}

#[test]
fn what_a_look_at_the_node_means() {
    use Phase::*;
    let good = || Finding::LostGood("g".into());
    for (held, seen, finding) in [
        (held(Running, None), Some(seen(2, Running)), Finding::Same),
        (held(Running, None), Some(seen(2, Ready)), Finding::Moved),
        (held(Pending, None), Some(seen(2, Accepted)), Finding::Moved),
        (held(Ready, None), Some(seen(2, Running)), Finding::Same),
        (held(Ready, None), None, Finding::Lost),
        (held(Running, None), None, Finding::Lost),
        (held(Ready, None), Some(seen(1, Ready)), Finding::Lost),
        (held(Failed, Some("g")), None, good()),
        (held(Refused, Some("g")), None, good()),
        (held(Failed, None), None, Finding::Same),
        (held(Failed, Some("g")), Some(seen(1, Ready)), Finding::Same),
        (held(Deleting, None), None, Finding::Gone),
        (held(Deleting, None), Some(seen(2, Deleting)), Finding::Same),
        (held(Deleting, None), Some(seen(2, Ready)), Finding::Same),
        (held(Deleting, None), Some(seen(1, Ready)), Finding::Lost),
        (held(Deleted, None), None, Finding::Same),
        (held(Ready, None), Some(seen(3, Ready)), Finding::Same),
    ] {
        assert_eq!(compare(&held, seen.as_ref()), finding, "{held:?} {seen:?}");
    }
    let undelivered = Held { delivered: false, ..held(Pending, None) };
    assert_eq!(compare(&undelivered, None), Finding::Same);
}

fn node(id: u64, free_mib: Option<u64>) -> NodeView {
    let capacity = |mib| {
        let free = Capacity { memory: Bytes::mib(mib), ..Capacity::default() };
        CapacityView { total: free, reserved: Capacity::default(), free }
    };
    NodeView {
        id: NodeId(id),
        farm: FarmId(1),
        key: KeyId([0; 32]),
        address: std::net::Ipv6Addr::LOCALHOST,
        online: true,
        reachable: free_mib.is_some(),
        capacity: free_mib.map(capacity),
        problem: free_mib.is_none().then(|| "its supervisor is away".into()),
    }
}

#[test]
fn the_freest_nodes_come_first() {
    let nodes = vec![node(1, Some(10)), node(2, Some(30)), node(3, None), node(4, Some(30))];
    let ids: Vec<_> = place(nodes.clone(), 2).unwrap().iter().map(|n| n.id.0).collect();
    assert_eq!(ids, [2, 4]);
    let failure = place(nodes.clone(), 4).unwrap_err();
    assert_eq!(failure.code, Code::InsufficientCapacity);
    assert_eq!(failure.detail.as_deref(), Some("node 3: its supervisor is away"));
    assert_eq!(place(nodes, 0).unwrap_err().code, Code::BadRequest);
}
