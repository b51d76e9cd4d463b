//! The last look before a version takes data with it.
//!
//! A plan that did not see the end of its script does not know what the version deletes. So whoever
//! deletes looks again: what was desired before, holds data and is not given up by the policy stays.
//! What a version has made itself, and what a delete takes away, goes.

use rhizome_model::{Comparison, Name, Phase, ResourceId, Task, WorkloadKind};

use crate::Runner;
use crate::operation::Trouble;

impl Runner {
    pub(crate) async fn keep_data(
        &self,
        kind: WorkloadKind,
        id: &ResourceId,
    ) -> Result<(), Trouble> {
        if !kind.keeps_data() {
            return Ok(());
        }
        let task = self.queue.task(&id.deployment_id()).await?;
        if !task.is_some_and(|task| protects(&task, kind, &id.name)) {
            return Ok(());
        }
        let holds = match self.workload(kind)?.observe(id).await? {
            Some(status) => kind.holds_data(&status)?,
            None => false,
        };
        let holding = if holds { vec![id.name.clone()] } else { Vec::new() };
        Ok(Comparison::data_loss(&holding)?)
    }
}

/// Whether a version on its way has to leave the data of a resource alone.
fn protects(task: &Task, kind: WorkloadKind, name: &Name) -> bool {
    let on_its_way = match task.phase {
        // With a failure noted it goes back: then only what it has made itself goes.
        Phase::Accepted | Phase::Running => task.failure.is_none(),
        Phase::Pending
        | Phase::Ready
        | Phase::Failed
        | Phase::RollbackStuck
        | Phase::Refused
        | Phase::Deleting
        | Phase::Deleted => false,
    };
    let was = task.desired.get(name).is_some_and(|r| r.kind == kind);
    on_its_way && was && !task.policy().allow_data_loss.contains(name)
}

#[cfg(test)]
mod tests {
    use rhizome_model::{Code, DesiredResource, Failure, JobId, Version};
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_a_version_on_its_way_found_is_protected() {
        let mut task = Task::new("1/app".parse().unwrap(), Version(2), JobId([0; 16]));
        let data = DesiredResource {
            name: "data".parse().unwrap(),
            kind: WorkloadKind::Volume,
            spec: json!({ "size": 1 << 20 }),
            line: 1,
        };
        task.desired.resources = vec![data.clone()];
        let made = DesiredResource { name: "made".parse().unwrap(), ..data.clone() };
        task.declared = vec![made.clone()];
        task.phase = Phase::Running;
        assert!(protects(&task, WorkloadKind::Volume, &data.name));
        assert!(!protects(&task, WorkloadKind::Volume, &made.name), "it made that itself");
        task.failure = Some(Failure::new(Code::ScriptFailed, "x"));
        assert!(!protects(&task, WorkloadKind::Volume, &data.name), "it goes back");
        task.failure = None;
        task.phase = Phase::Deleting;
        assert!(!protects(&task, WorkloadKind::Volume, &data.name));
    }
}
