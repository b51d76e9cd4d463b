//! Deployments for people.

use jiff::tz::TimeZone;
use rhizome_model::api::{DeploymentView, ResourceView, TaskView};

use super::{clean, date, event, table, value};

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
    parts.extend(view.tasks.iter().map(task));
    parts.join("\n\n")
}

fn task(task: &TaskView) -> String {
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
        lines.push(table(["RESOURCE", "KIND", "STATE", "ADDRESS"], task.resources.iter().map(row)));
    }
    lines
        .extend(task.outputs.iter().map(|(key, said)| format!("{} = {}", clean(key), value(said))));
    lines.join("\n")
}

fn row(view: &ResourceView) -> [String; 4] {
    let field = |name: &str| {
        let found = view.status.as_ref().and_then(|status| status.get(name));
        found.map_or_else(|| "-".to_owned(), value)
    };
    [view.resource.name.to_string(), view.resource.kind.to_string(), state(view), field("address")]
}

/// How it is, and why it is not as it should be.
fn state(view: &ResourceView) -> String {
    let Some(status) = &view.status else {
        return "not made".to_owned();
    };
    let state = status.get("state").map_or_else(|| "ready".to_owned(), value);
    match status.pointer("/health/reason") {
        Some(reason) => format!("{state}, failing: {}", value(reason)),
        None => state,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rhizome_model::{
        Bytes, Capacity, Code, Cpu, DesiredResource, Failure, NodeId, Phase, Version, WorkloadKind,
    };
    use serde_json::{Value, json};

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
    fn deployments_for_people() {
        insta::assert_snapshot!(list(&[view()], &TimeZone::UTC));
    }
}
