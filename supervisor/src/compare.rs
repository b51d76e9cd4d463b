//! What the node has of a deployment, for the next version to be compared with: by the node itself
//! before it takes one, and by whoever plans.

use std::time::Duration;

use rhizome_engine::Plan;
use rhizome_model::api::PlanBase;
use rhizome_model::{
    Comparison, DeploymentDocument, DeploymentId, DesiredResource, Failure, Job, JobId, Observed,
    Outcome, Priority, Work, queue_name,
};
use rhizome_service::clock;
use tokio::time::{Instant, timeout_at};

use crate::Supervisor;

/// A look takes milliseconds. One that waits longer stands behind work that somebody else should hear
/// of.
const LOOK: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Refuses a version for what the resources hold that it deletes, replaces or shrinks.
    pub(crate) async fn check_state(
        &self,
        deployment: &DeploymentId,
        desired: &[DesiredResource],
        plan: &Plan,
        document: &DeploymentDocument,
    ) -> Result<(), Failure> {
        let unseen = plan.unseen(&document.script);
        let comparison = Comparison::new(desired, &plan.resources, unseen, &document.policy)?;
        let observed = self.observe(deployment, &comparison.to_observe()).await?;
        comparison.check(&observed)
    }

    /// What a plan of the next version needs to know of this node.
    pub(crate) async fn plan_base(&self, deployment: &DeploymentId) -> Result<PlanBase, Failure> {
        let task = self.queue.task(deployment).await?;
        let current = task.as_ref().map(|t| (t.version, t.phase));
        let (reserved, resources) =
            task.map(|t| (t.reserved, t.desired.resources)).unwrap_or_default();
        Ok(PlanBase {
            facts: self.facts.clone(),
            limits: self.limits,
            version: current.map(|(version, _)| version),
            phase: current.map(|(_, phase)| phase),
            available: self.usage().await?.free.saturating_add(reserved),
            granted: self.granted(deployment.account, reserved).await?,
            observed: self.observe(deployment, &resources).await?,
            resources,
        })
    }

    /// How they are. One that cannot be found out in time is left out.
    async fn observe(
        &self,
        deployment: &DeploymentId,
        resources: &[DesiredResource],
    ) -> Result<Observed, Failure> {
        let jobs: Vec<_> = resources.iter().map(|r| look(deployment, r)).collect();
        self.queue.submit(&jobs).await?;
        let deadline = Instant::now() + LOOK;
        let mut observed = Observed::new();
        for (resource, job) in resources.iter().zip(&jobs) {
            match timeout_at(deadline, self.queue.wait(job.id)).await {
                Ok(Ok(Outcome::Succeeded(status))) => {
                    observed.insert(resource.name.clone(), status);
                }
                Ok(outcome) => drop(outcome?),
                Err(_) => drop(self.queue.cancel(job.id).await?),
            }
        }
        Ok(observed)
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
