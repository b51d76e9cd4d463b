//! Deployments for people.

use jiff::tz::TimeZone;
use rhizome_model::api::{DeploymentView, ResourceView, TaskView};
use serde_json::Value;

use super::{clean, clock, date, event, table, value};

/// One line each.
pub fn list(deployments: &[DeploymentView], zone: &TimeZone) -> String {
    let rows = deployments.iter().map(|view| {
        let nodes: Vec<_> = view.tasks.iter().map(|task| task.node.to_string()).collect();
        [
            view.deployment.to_string(),
            view.version.to_string(),
            view.phase.to_string(),
            nodes.join(" "),
            date(view.updated_at, zone),
        ]
    });
    table(["DEPLOYMENT", "VERSION", "PHASE", "NODES", "UPDATED"], rows)
}

/// All of one.
pub fn show(view: &DeploymentView, zone: &TimeZone) -> String {
    let mut parts = vec![format!(
        "{} version {}: {}\nsubmitted {}, updated {}",
        view.deployment,
        view.version,
        view.phase,
        date(view.submitted_at, zone),
        date(view.updated_at, zone),
    )];
    parts.extend(view.tasks.iter().map(|t| task(t, zone)));
    parts.join("\n\n")
}

fn task(task: &TaskView, zone: &TimeZone) -> String {
    let mut lines = vec![format!(
        "node {}: {} (version {}), reserved {}",
        task.node, task.phase, task.version, task.reserved
    )];
    if let Some(reason) = &task.waiting_for {
        lines.push(format!("waiting for {}", clean(reason)));
    }
    if let Some(failure) = &task.failure {
        lines.push(event::because(failure));
        lines.extend(failure.detail.as_deref().map(clean));
    }
    if !task.resources.is_empty() {
        let rows = task.resources.iter().map(|resource| row(resource, zone));
        lines.push(table(["RESOURCE", "KIND", "STATE", "ADDRESS"], rows));
    }
    lines
        .extend(task.outputs.iter().map(|(key, said)| format!("{} = {}", clean(key), value(said))));
    lines.join("\n")
}

fn row(view: &ResourceView, zone: &TimeZone) -> [String; 4] {
    let field = |name: &str| {
        let found = view.status.as_ref().and_then(|status| status.get(name));
        found.map_or_else(|| "-".to_owned(), value)
    };
    let (name, kind) = (view.resource.name.to_string(), view.resource.kind.to_string());
    [name, kind, state(view, zone), field("address")]
}

/// How it is, why it is not as it should be, and how often it was started again.
fn state(view: &ResourceView, zone: &TimeZone) -> String {
    let Some(status) = &view.status else {
        return "not made".to_owned();
    };
    let mut state = status.get("state").map_or_else(|| "ready".to_owned(), value);
    let reason = status.pointer("/health/reason");
    if let Some(reason) = reason {
        state.push_str(&format!(", failing: {}", value(reason)));
    }
    if let Some(at) = status.get("next_start_at").and_then(Value::as_i64) {
        state.push_str(&format!("; starts at {}", clock(at, zone)));
    }
    let restarts = status.get("restarts").and_then(Value::as_u64).unwrap_or(0);
    if restarts > 0 {
        state.push_str(&format!("; restarts: {restarts}"));
    }
    if let Some(snapshots) = status.get("snapshots").and_then(Value::as_array)
        && !snapshots.is_empty()
    {
        let names: Vec<_> = snapshots.iter().filter_map(|s| s.get("name").map(value)).collect();
        state.push_str(&format!("; snapshots: {}", names.join(", ")));
    }
    match status.get("last_exit") {
        // Where it fails, that is the reason.
        Some(last) if reason.is_none() => format!("{state}, the last because {}", value(last)),
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rhizome_model::{
        Bytes, Capacity, Code, Cpu, DesiredResource, Failure, NodeId, Phase, Version, WorkloadKind,
    };
    use serde_json::json;

    use super::*;

    fn resource(name: &str, kind: WorkloadKind, status: Option<Value>) -> ResourceView {
        let name = name.parse().unwrap();
        ResourceView { resource: DesiredResource { name, kind, spec: json!({}), line: 1 }, status }
    }

    fn view() -> DeploymentView {
        let reserved =
            Capacity { cpu: Cpu::cores(2), memory: Bytes::mib(512), disk: Bytes::gib(1) };
        let ready = TaskView {
            deployment: "1/demo".parse().unwrap(),
            version: Version(2),
            node: NodeId(1),
            phase: Phase::Ready,
            failure: None,
            outputs: BTreeMap::from([("page".to_owned(), json!("hello"))]),
            resources: vec![
                resource("data", WorkloadKind::Volume, Some(json!({ "path": "/x" }))),
                resource(
                    "web",
                    WorkloadKind::Machine,
                    Some(json!({
                        "state": "backing_off", "address": "5d3::1",
                        "health": { "status": "failing", "reason": "exit status 1" },
                        "restarts": 3, "last_exit": "exit status 1",
                        "next_start_at": 1_700_000_004_500i64,
                    })),
                ),
                resource(
                    "api",
                    WorkloadKind::Machine,
                    Some(json!({
                        "state": "running", "address": "5d3::2", "health": { "status": "good" },
                        "restarts": 2, "last_exit": "it was ended by signal 9",
                    })),
                ),
                resource("client", WorkloadKind::Machine, None),
            ],
            reserved,
            waiting_for: None,
        };
        let failure = Failure::new(Code::InsufficientCapacity, "asked for 4 cpu; free are 2");
        let refused = TaskView {
            node: NodeId(2),
            phase: Phase::Refused,
            failure: Some(failure),
            outputs: BTreeMap::new(),
            resources: Vec::new(),
            reserved: Capacity::default(),
            waiting_for: Some("room".into()),
            ..ready.clone()
        };
        DeploymentView {
            deployment: "1/demo".parse().unwrap(),
            version: Version(2),
            phase: Phase::Refused,
            submitted_at: 1_700_000_000_000,
            updated_at: 1_700_000_001_000,
            tasks: vec![ready, refused],
        }
    }

    #[test]
    fn a_deployment_for_people() {
        insta::assert_snapshot!(show(&view(), &TimeZone::UTC));
    }

    #[test]
    fn a_volumes_snapshots_are_shown() {
        let status = json!({ "size": 1, "snapshots": [
            { "name": "monday", "taken_at": 1 }, { "name": "tuesday", "taken_at": 2 },
        ] });
        let data = resource("data", WorkloadKind::Volume, Some(status));
        assert_eq!(state(&data, &TimeZone::UTC), "ready; snapshots: monday, tuesday");
    }

    #[test]
    fn deployments_for_people() {
        insta::assert_snapshot!(list(&[view()], &TimeZone::UTC));
    }
}
