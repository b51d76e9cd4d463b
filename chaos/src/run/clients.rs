//! Those who submit, cancel and look, through the same bad wire.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rhizome_model::{Job, JobId};
use rhizome_queue::{Queue, QueueError, Submission};
use tokio::time::Instant;

use crate::history::{History, What};
use crate::plan::random_job;

const MOST_AT_ONCE: usize = 120;
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Clients {
    queue: Queue,
    history: History,
    seed: u64,
    /// What was submitted so far, for those who cancel and look.
    known: Arc<Mutex<Vec<JobId>>>,
}

impl Clients {
    pub(super) fn new(queue: Queue, history: History, seed: u64) -> Self {
        Self { queue, history, seed, known: Arc::default() }
    }

    /// Submits so many jobs, evenly over the time, while others cancel and look. All ids.
    pub(super) async fn submit_all(
        &self,
        jobs: usize,
        over: Duration,
    ) -> anyhow::Result<Vec<JobId>> {
        tokio::select! {
            submitted = self.submit(jobs, over) => submitted?,
            cancelled = self.cancel() => cancelled?,
            looked = self.look() => looked?,
        }
        Ok(self.known.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn submit(&self, jobs: usize, over: Duration) -> anyhow::Result<()> {
        let mut dice = fastrand::Rng::with_seed(self.seed);
        let begin = Instant::now();
        let mut done = 0;
        let mut last: Option<JobId> = None;
        while done < jobs {
            let some = dice.usize(1..=MOST_AT_ONCE).min(jobs - done);
            let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
            let mut batch = Vec::with_capacity(some);
            for _ in 0..some {
                let mut job = random_job(&mut dice, now)?;
                match last {
                    Some(last) if dice.u32(..30) == 0 => job.after = vec![last],
                    Some(last) if dice.u32(..30) == 0 => job.parent = Some(last),
                    Some(_) | None => {}
                }
                last = Some(job.id);
                batch.push(job);
            }
            self.submit_some(&batch).await?;
            done += some;
            let due = begin + over.mul_f64(done as f64 / jobs as f64);
            tokio::time::sleep_until(due).await;
        }
        Ok(())
    }

    /// Until there is an answer: whoever gets none asks again, with the same ids.
    async fn submit_some(&self, jobs: &[Job]) -> anyhow::Result<()> {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(jobs.iter().map(|job| job.id));
        loop {
            jobs.iter().for_each(|job| self.history.note(job.id, What::Submitting));
            match self.queue.submit(jobs).await {
                Ok(answers) => {
                    anyhow::ensure!(answers.len() == jobs.len(), "an answer to each");
                    for (job, answer) in jobs.iter().zip(answers) {
                        self.history.note(job.id, heard(answer));
                    }
                    return Ok(());
                }
                Err(QueueError::Unavailable(_)) => {
                    jobs.iter().for_each(|job| self.history.note(job.id, What::Unanswered));
                }
                Err(error) => return Err(error).context("a submission is refused"),
            }
        }
    }

    async fn cancel(&self) -> anyhow::Result<()> {
        let mut dice = fastrand::Rng::with_seed(self.seed ^ 1);
        loop {
            tokio::time::sleep(Duration::from_millis(dice.u64(2..40))).await;
            let Some(id) = self.some_job(&mut dice) else { continue };
            self.history.note(id, What::Cancelling);
            match self.queue.cancel(id).await {
                Ok(state) => self.history.note(id, What::Cancelled { state }),
                Err(QueueError::NoSuchJob(_) | QueueError::Unavailable(_)) => {}
                Err(error) => return Err(error).with_context(|| format!("cancelling {id}")),
            }
        }
    }

    async fn look(&self) -> anyhow::Result<()> {
        let mut dice = fastrand::Rng::with_seed(self.seed ^ 2);
        loop {
            tokio::time::sleep(Duration::from_millis(dice.u64(1..20))).await;
            let Some(id) = self.some_job(&mut dice) else { continue };
            match self.queue.job(id).await {
                Ok(Some(record)) if record.state.is_ended() => {
                    self.history.note(id, What::Seen { state: record.state });
                }
                Ok(_) | Err(QueueError::Unavailable(_)) => {}
                Err(error) => return Err(error).with_context(|| format!("looking at {id}")),
            }
        }
    }

    /// One of the latest: the old ones have ended.
    fn some_job(&self, dice: &mut fastrand::Rng) -> Option<JobId> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = known.len().min(2 * MOST_AT_ONCE);
        (latest > 0).then(|| known[known.len() - 1 - dice.usize(..latest)])
    }
}

fn heard(answer: Submission) -> What {
    match answer {
        Submission::Queued => What::Accepted,
        Submission::Known(state) => What::Known { state },
        Submission::Duplicate(of) => What::Duplicate { of },
    }
}

/// Waits until every job that there is has ended.
pub(super) async fn end_of_all(
    queue: &Queue,
    jobs: &[JobId],
    within: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    for id in jobs {
        while queue.job(*id).await?.is_some_and(|record| !record.state.is_ended()) {
            anyhow::ensure!(Instant::now() < deadline, "job {id} does not end");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}
