//! Operation jobs of a script job: submitted under derived ids, so that asking again after a crash
//! finds the same job instead of making a second one.

use futures_util::future::try_join_all;
use rhizome_model::{
    Action, Code, DeploymentId, DesiredResource, Ends, Failure, Job, JobId, JobState, Outcome,
    Priority, TraceId, Version, Work, queue_name,
};
use rhizome_queue::{Lease, Queue, QueueError};
use serde_json::Value;

/// The longest that one operation may take: the import of a large image on a slow disk.
const TIMEOUT_MS: u64 = 5 * 60 * 1000;

/// Why a change did not come about.
pub(super) enum Undone {
    Lost(QueueError),
    Failed(Failure),
}

impl From<QueueError> for Undone {
    fn from(error: QueueError) -> Self {
        Self::Lost(error)
    }
}

#[derive(Clone)]
pub(super) struct Operations {
    queue: Queue,
    parent: JobId,
    deployment: DeploymentId,
    version: Version,
    priority: Priority,
    trace: Option<TraceId>,
    /// Tells repeated rounds of the same undoing apart: a failed one must not be found again.
    round: String,
}

impl Operations {
    pub(super) fn new(queue: Queue, lease: &Lease) -> Self {
        let job = &lease.job;
        // Script jobs always carry both: the runner has looked the task up by them.
        let deployment = job.deployment.clone().expect("a script job names its deployment");
        let version = job.version.expect("a script job names its version");
        let round = format!("{} {}", job.id, lease.attempt);
        let (parent, priority, trace) = (job.id, job.priority, job.trace);
        Self { queue, parent, deployment, version, priority, trace, round }
    }

    pub(super) fn deployment(&self) -> &DeploymentId {
        &self.deployment
    }

    /// The job that makes a declared resource; the same on every attempt.
    pub(super) fn make_id(&self, resource: &DesiredResource) -> JobId {
        make_id(&self.deployment, self.version, resource)
    }

    /// What makes a declared resource, the last of them by itself: in the place of another, if there
    /// is one, and after others.
    pub(super) fn make_jobs(
        &self,
        call: u64,
        resource: &DesiredResource,
        replaced: Option<&DesiredResource>,
        mut after: Vec<JobId>,
    ) -> Vec<Job> {
        let mut jobs = Vec::new();
        if let Some(old) = replaced {
            let id =
                JobId::derived(&self.deployment, self.version, &format!("replace {}", old.name));
            let work =
                Work::Delete { kind: old.kind, id: self.deployment.resource(old.name.clone()) };
            let ends = Some(Ends { call, only_failed: true });
            jobs.push(Job { ends, ..self.job(id, old, work) });
            after.push(id);
        }
        let ends = Some(Ends { call, only_failed: false });
        jobs.push(Job { after, ends, ..self.ensure_job(resource, self.make_id(resource)) });
        jobs
    }

    /// The job that does something with a resource, once per call of the script.
    pub(super) fn act_job(&self, call: u64, resource: &DesiredResource, action: Action) -> Job {
        let id = self.deployment.resource(resource.name.clone());
        let job_id = JobId::derived(&self.deployment, self.version, &format!("act {call}"));
        let ends = Some(Ends { call, only_failed: false });
        Job { ends, ..self.job(job_id, resource, Work::Act { kind: resource.kind, id, action }) }
    }

    /// How the last of these jobs ends. They were submitted; if that is so long ago that nobody
    /// knows them any more, they are done again.
    pub(super) async fn outcome_of(&self, jobs: &[Job]) -> Result<Value, Undone> {
        let Some(last) = jobs.last() else { return Ok(Value::Null) };
        let outcome = match self.queue.wait(last.id).await {
            Err(QueueError::NoSuchJob(_)) => {
                // What they were after has been done, and may be forgotten as well.
                let anew = |job: &Job| Job { after: Vec::new(), ..job.clone() };
                for job in jobs.iter().map(anew) {
                    self.queue.submit(std::slice::from_ref(&job)).await?;
                    self.queue.wait(job.id).await?;
                }
                self.queue.wait(last.id).await?
            }
            outcome => outcome?,
        };
        // Why the last did not come about may be the one before it.
        if let (Outcome::Failed(_), [first, _, ..]) = (&outcome, jobs)
            && let Some(Outcome::Failed(cause)) = self.known_outcome(first.id).await?
        {
            return Err(Undone::Failed(cause));
        }
        Self::value_of(outcome)
    }

    /// How a job ended, if that is known.
    async fn known_outcome(&self, id: JobId) -> Result<Option<Outcome>, QueueError> {
        match self.queue.wait(id).await {
            Ok(outcome) => Ok(Some(outcome)),
            Err(QueueError::NoSuchJob(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends the making of a resource unless it has begun.
    pub(super) async fn stop_unbegun(&self, resource: &DesiredResource) -> Result<(), QueueError> {
        match self.queue.cancel_unbegun(self.make_id(resource)).await {
            Ok(_) | Err(QueueError::NoSuchJob(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ensures all, each after what it refers to.
    pub(super) async fn ensure_all(
        &self,
        resources: &[DesiredResource],
        why: &str,
    ) -> Result<(), Undone> {
        let mut waiting: Vec<_> = resources.iter().collect();
        let mut made: Vec<&DesiredResource> = Vec::new();
        while !waiting.is_empty() {
            let mut now = Vec::new();
            let mut later = Vec::new();
            for resource in waiting {
                let needs = resource.kind.references(&resource.spec).map_err(Undone::Failed)?;
                let ready = needs.iter().all(|n| {
                    made.iter().any(|m| m.name == n.name)
                        || !resources.iter().any(|r| r.name == n.name)
                });
                if ready { now.push(resource) } else { later.push(resource) }
            }
            if now.is_empty() {
                let message = "resources need each other in a circle";
                return Err(Undone::Failed(Failure::new(Code::Internal, message)));
            }
            let jobs = now.iter().map(|r| self.run(self.ensure_job(r, self.round_id(why, r))));
            try_join_all(jobs).await?;
            made.extend(now);
            waiting = later;
        }
        Ok(())
    }

    /// Deletes all, in reverse order of declaration, side by side as far as nothing refers to them.
    pub(super) async fn delete_all(
        &self,
        resources: &[DesiredResource],
        why: &str,
    ) -> Result<(), Undone> {
        let mut left: Vec<_> = resources.iter().rev().collect();
        while !left.is_empty() {
            let mut needed = Vec::new();
            for resource in &left {
                needed.extend(resource.kind.references(&resource.spec).map_err(Undone::Failed)?);
            }
            let (later, now): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|r| needed.iter().any(|n| n.name == r.name));
            // In a circle nothing would ever be free to go: then all go at once.
            let (now, later) = if now.is_empty() { (later, Vec::new()) } else { (now, later) };
            let jobs = now.iter().map(|r| {
                let id = self.deployment.resource(r.name.clone());
                let work = Work::Delete { kind: r.kind, id };
                self.run(self.job(self.round_id(why, r), r, work))
            });
            try_join_all(jobs).await?;
            left = later;
        }
        Ok(())
    }

    /// Waits until the evaluation of this version has stopped: it could still ask for something.
    pub(super) async fn end_script(&self) -> Result<(), QueueError> {
        self.end(JobId::script(&self.deployment, self.version)).await
    }

    /// Stops whatever is still being made and waits until none of it runs.
    pub(super) async fn quiesce(&self, declared: &[DesiredResource]) -> Result<(), QueueError> {
        for resource in declared {
            self.end(make_id(&self.deployment, self.version, resource)).await?;
        }
        Ok(())
    }

    async fn end(&self, id: JobId) -> Result<(), QueueError> {
        if self.queue.job(id).await?.is_some_and(|record| !record.state.is_ended()) {
            self.queue.cancel(id).await?;
            self.queue.wait(id).await?;
        }
        Ok(())
    }

    /// Those that were made. Waits for those that are being made.
    pub(super) async fn made(
        &self,
        declared: &[DesiredResource],
    ) -> Result<Vec<DesiredResource>, QueueError> {
        let mut made = Vec::new();
        for resource in declared {
            let id = make_id(&self.deployment, self.version, resource);
            let Some(record) = self.queue.job(id).await? else { continue };
            if record.state == JobState::Succeeded
                || matches!(self.queue.wait(id).await?, Outcome::Succeeded(_))
            {
                made.push(resource.clone());
            }
        }
        Ok(made)
    }

    async fn run(&self, job: Job) -> Result<Value, Undone> {
        let id = job.id;
        self.queue.submit(&[job]).await?;
        Self::value_of(self.queue.wait(id).await?)
    }

    pub(super) fn value_of(outcome: Outcome) -> Result<Value, Undone> {
        match outcome {
            Outcome::Succeeded(value) => Ok(value),
            Outcome::Failed(failure) => Err(Undone::Failed(failure)),
            Outcome::Cancelled => {
                Err(Undone::Failed(Failure::new(Code::Cancelled, "the operation was cancelled")))
            }
        }
    }

    fn ensure_job(&self, resource: &DesiredResource, id: JobId) -> Job {
        let work = Work::Ensure {
            kind: resource.kind,
            id: self.deployment.resource(resource.name.clone()),
            spec: resource.spec.clone(),
        };
        self.job(id, resource, work)
    }

    fn round_id(&self, why: &str, resource: &DesiredResource) -> JobId {
        let what = format!("{why} {} {}", self.round, resource.name);
        JobId::derived(&self.deployment, self.version, &what)
    }

    fn job(&self, id: JobId, resource: &DesiredResource, work: Work) -> Job {
        Job {
            deployment: Some(self.deployment.clone()),
            version: Some(self.version),
            resource: Some(resource.name.clone()),
            priority: self.priority,
            max_attempts: resource.kind.retry().attempts,
            timeout_ms: TIMEOUT_MS,
            parent: Some(self.parent),
            trace: self.trace,
            ..Job::new(id, queue_name(&work), self.deployment.account, work)
        }
    }
}

fn make_id(deployment: &DeploymentId, version: Version, resource: &DesiredResource) -> JobId {
    JobId::derived(deployment, version, &format!("make {} {}", resource.kind, resource.name))
}
