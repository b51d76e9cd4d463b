//! What the node has of a deployment, for the next version to be compared with: by the node itself
//! before it takes one, and by whoever plans.

use std::time::Duration;

use rhizome_engine::Plan;
use rhizome_model::api::PlanBase;
use rhizome_model::{
    Comparison, DeploymentDocument, DeploymentId, DesiredResource, Failure, Job, JobId, Name,
    Outcome, Priority, Work, queue_name,
};
use rhizome_service::clock;
use tokio::time::{Instant, timeout_at};

use crate::Supervisor;

/// A look into a volume takes milliseconds. One that waits longer stands behind work that somebody
/// else should hear of: the data counts as there.
const LOOK: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Refuses a version that would lose data which its policy does not give up.
    pub(crate) async fn keep_data(
        &self,
        deployment: &DeploymentId,
        desired: &[DesiredResource],
        plan: &Plan,
        document: &DeploymentDocument,
    ) -> Result<(), Failure> {
        let unseen = plan.unseen(&document.script);
        let comparison = Comparison::new(desired, &plan.resources, unseen, &document.policy)?;
        let holding = self.holding(deployment, &comparison.at_risk).await?;
        Comparison::data_loss(&holding)
    }

    /// What a plan of the next version needs to know of this node.
    pub(crate) async fn plan_base(&self, deployment: &DeploymentId) -> Result<PlanBase, Failure> {
        let task = self.queue.task(deployment).await?;
        let current = task.as_ref().map(|t| (t.version, t.phase));
        let (reserved, resources) =
            task.map(|t| (t.reserved, t.desired.resources)).unwrap_or_default();
        let keeps: Vec<_> = resources.iter().filter(|r| r.kind.keeps_data()).cloned().collect();
        Ok(PlanBase {
            facts: self.facts.clone(),
            limits: self.limits,
            version: current.map(|(version, _)| version),
            phase: current.map(|(_, phase)| phase),
            available: self.usage().await?.free.saturating_add(reserved),
            holding: self.holding(deployment, &keeps).await?,
            resources,
        })
    }

    /// Those that hold data. One of which that cannot be found out in time counts as holding some.
    async fn holding(
        &self,
        deployment: &DeploymentId,
        resources: &[DesiredResource],
    ) -> Result<Vec<Name>, Failure> {
        let jobs: Vec<_> = resources.iter().map(|r| look(deployment, r)).collect();
        self.queue.submit(&jobs).await?;
        let deadline = Instant::now() + LOOK;
        let mut holding = Vec::new();
        for (resource, job) in resources.iter().zip(&jobs) {
            let outcome = match timeout_at(deadline, self.queue.wait(job.id)).await {
                Ok(outcome) => Some(outcome?),
                Err(_) => {
                    self.queue.cancel(job.id).await?;
                    None
                }
            };
            if holds_data(resource, outcome) {
                holding.push(resource.name.clone());
            }
        }
        Ok(holding)
    }
}

fn holds_data(resource: &DesiredResource, outcome: Option<Outcome>) -> bool {
    match outcome {
        // There is nothing of it.
        Some(Outcome::Succeeded(status)) if status.is_null() => false,
        Some(Outcome::Succeeded(status)) => resource.kind.holds_data(&status).unwrap_or(true),
        Some(Outcome::Failed(_) | Outcome::Cancelled) | None => true,
    }
}

/// It names no deployment: what it sees is for us, and changes no status.
fn look(deployment: &DeploymentId, resource: &DesiredResource) -> Job {
    let id = deployment.resource(resource.name.clone());
    let work = Work::Observe { kind: resource.kind, id };
    let job_id = JobId(*uuid::Uuid::new_v4().as_bytes());
    let patience = i64::try_from(LOOK.as_millis()).unwrap_or(i64::MAX);
    Job {
        priority: Priority::High,
        max_attempts: 1,
        expires_at: Some(clock::now_ms().saturating_add(patience)),
        ..Job::new(job_id, queue_name(&work), deployment.account, work)
    }
}

#[cfg(test)]
mod tests {
    use rhizome_model::{Code, WorkloadKind};
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_known_to_be_empty_holds_nothing() {
        let resource = DesiredResource {
            name: "data".parse().unwrap(),
            kind: WorkloadKind::Volume,
            spec: json!({ "size": 1 << 20 }),
            line: 1,
        };
        let seen = |value| Some(Outcome::Succeeded(value));
        for (outcome, holds) in [
            (seen(json!(null)), false),
            (seen(json!({ "size": 1, "used": 16384, "empty": true })), false),
            (seen(json!({ "size": 1, "used": 16384, "empty": false })), true),
            (seen(json!({ "size": 1, "used": 16384 })), true),
            (
                seen(json!({ "size": 1, "used": 16384, "empty": true,
                    "snapshots": [{ "name": "before", "taken_at": 1 }] })),
                true,
            ),
            (Some(Outcome::Failed(Failure::new(Code::ToolFailed, "x"))), true),
            (Some(Outcome::Cancelled), true),
            (None, true),
        ] {
            assert_eq!(holds_data(&resource, outcome.clone()), holds, "{outcome:?}");
        }
    }
}
