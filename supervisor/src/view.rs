//! What others see of a task.

use std::collections::BTreeMap;

use rhizome_model::api::{ResourceView, TaskView};
use rhizome_model::{Name, NodeId, Phase, Task};
use serde_json::Value;

/// While a version is under way its declarations are shown, and what is kept beside them.
pub fn task(task: &Task, node: NodeId, statuses: &BTreeMap<Name, Value>) -> TaskView {
    let resource = |r: &&rhizome_model::DesiredResource| ResourceView {
        resource: (*r).clone(),
        status: statuses.get(&r.name).cloned(),
    };
    // While it runs, a failure is that of an undoing under way.
    let failure = match task.phase {
        Phase::Failed | Phase::Refused => task.failure.clone(),
        _ => None,
    };
    let waiting_for = match (&task.failure, task.phase) {
        (Some(cause), Phase::Running) => Some(format!("goes back to the version before: {cause}")),
        _ => None,
    };
    TaskView {
        deployment: task.deployment.clone(),
        version: task.version,
        node,
        phase: task.phase,
        failure,
        outputs: task.outputs.clone(),
        resources: task.held().iter().map(resource).collect(),
        reserved: task.reserved,
        waiting_for,
    }
}
