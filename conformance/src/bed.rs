//! What the cases ask for again and again.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use rhizome_model::{AccountId, Code, Failure, Job, JobId, JobState, Outcome, Work, WorkloadKind};
use rhizome_queue::{JobRecord, QueueError, Submission};
use serde_json::json;
use tokio::time::Instant;

use crate::{Lease, Node, Result, Runner, Seat};

/// Whatever a case waits for comes sooner on any machine that is alive.
const DEADLINE: Duration = Duration::from_secs(20);
/// Time enough for what must not happen.
const LULL: Duration = Duration::from_millis(80);

pub(crate) const QUEUE: &str = "volume";

/// A fresh node, and a hand for it.
#[derive(Clone)]
pub struct Bed {
    node: Arc<dyn Node>,
}

impl Deref for Bed {
    type Target = dyn Node;
    fn deref(&self) -> &Self::Target {
        &*self.node
    }
}

impl Bed {
    pub(crate) fn new(node: Box<dyn Node>) -> Self {
        Self { node: node.into() }
    }

    pub(crate) async fn hire(&self, name: &str, slots: usize) -> anyhow::Result<Box<dyn Runner>> {
        self.hire_for(name, slots, &[QUEUE]).await
    }

    pub(crate) async fn hire_for(
        &self,
        name: &str,
        slots: usize,
        queues: &[&str],
    ) -> anyhow::Result<Box<dyn Runner>> {
        let queues = queues.iter().map(|queue| (*queue).to_owned()).collect();
        Ok(self.runner(Seat { name: name.to_owned(), queues, slots }).await?)
    }

    /// Submits what must be new.
    pub(crate) async fn queue(&self, jobs: &[Job]) -> anyhow::Result<()> {
        for (job, became) in jobs.iter().zip(self.submit(jobs).await?) {
            ensure!(became == Submission::Queued, "job {} is {became:?}", job.id);
        }
        Ok(())
    }

    pub(crate) async fn record(&self, id: JobId) -> anyhow::Result<JobRecord> {
        self.job(id).await?.with_context(|| format!("job {id} is not known"))
    }

    pub(crate) async fn state(&self, id: JobId) -> anyhow::Result<JobState> {
        Ok(self.record(id).await?.state)
    }

    /// Waits until a job is in this state; it never passes it by.
    pub(crate) async fn becomes(&self, id: JobId, state: JobState) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let is = self.state(id).await?;
            if is == state {
                return Ok(());
            }
            ensure!(!is.is_ended(), "job {id} is {is:?} and never was {state:?}");
            ensure!(Instant::now() < deadline, "job {id} stays {is:?}, {state:?} was expected");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    pub(crate) async fn outcome(&self, id: JobId) -> anyhow::Result<Outcome> {
        Ok(soon("an outcome", self.wait(id)).await??)
    }

    /// How many jobs of a queue ended so.
    pub(crate) async fn ended(&self, queue: &str, state: JobState) -> anyhow::Result<u64> {
        let stats = self.stats().await?;
        let stats = stats.into_iter().find(|stats| stats.queue == queue);
        Ok(stats.and_then(|stats| stats.ended.get(&state).copied()).unwrap_or_default())
    }

    /// Whether none of these jobs starts, on this runner, in a while.
    pub(crate) async fn nothing_comes(&self, runner: &mut Box<dyn Runner>) -> anyhow::Result<()> {
        match tokio::time::timeout(LULL, runner.next()).await {
            Ok(Some(lease)) => bail!("job {} started", lease.job().id),
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

pub(crate) async fn take(runner: &mut Box<dyn Runner>) -> anyhow::Result<Box<dyn Lease>> {
    soon("a lease", runner.next()).await?.context("the runner takes no more")
}

/// Takes a job, which must be this one, and ends it.
pub(crate) async fn serve(runner: &mut Box<dyn Runner>, id: JobId) -> anyhow::Result<()> {
    let lease = take(runner).await?;
    ensure!(lease.job().id == id, "job {} came, not {id}", lease.job().id);
    Ok(lease.finish(&done()).await?)
}

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    let ended = tokio::time::timeout(DEADLINE, future).await;
    ended.map_err(|_| anyhow::anyhow!("waited in vain for {what}"))
}

/// Waits until it says yes.
pub(crate) async fn until<F>(what: &str, mut is_so: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let deadline = Instant::now() + DEADLINE;
    while !is_so().await? {
        ensure!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(())
}

pub(crate) fn new_id() -> JobId {
    JobId(uuid::Uuid::new_v4().into_bytes())
}

pub(crate) fn job() -> Job {
    job_of(1)
}

/// A job of an account.
pub(crate) fn job_of(account: u64) -> Job {
    let work = Work::Sweep { kind: WorkloadKind::Volume };
    Job::new(new_id(), QUEUE, AccountId(account), work)
}

/// So many that are alike.
pub(crate) fn jobs(number: usize, make: impl Fn() -> Job) -> Vec<Job> {
    std::iter::repeat_with(make).take(number).collect()
}

pub(crate) fn done() -> Outcome {
    Outcome::Succeeded(json!("done"))
}

pub(crate) fn failure() -> Failure {
    Failure::new(Code::ToolFailed, "it did not work")
}

/// Unix milliseconds.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(crate) fn is_fenced<T: std::fmt::Debug>(what: &str, answer: Result<T>) -> anyhow::Result<()> {
    ensure!(matches!(answer, Err(QueueError::Fenced)), "{what} of a stale attempt: {answer:?}");
    Ok(())
}

/// The code of a failure that a job ended with.
pub(crate) fn code_of(outcome: &Outcome) -> anyhow::Result<Code> {
    match outcome {
        Outcome::Failed(failure) => Ok(failure.code),
        Outcome::Succeeded(_) | Outcome::Cancelled => bail!("it ended otherwise: {outcome:?}"),
    }
}
