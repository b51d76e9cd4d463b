//! Submitting and cancelling.

use futures_util::TryStreamExt;
use futures_util::stream::FuturesOrdered;
use rhizome_model::{Code, Failure, Job, JobId, JobState, Outcome};

use crate::link::{Call, Link};
use crate::record::{parse_state, to_json};
use crate::{BATCH, Queue, QueueError, keys};

/// A job moves between two looks; it does not do so for ever.
const LOOKS: usize = 100;
/// Batches of one submission that are on their way at a time: redis-server takes one in while the
/// next is written.
const AHEAD: usize = 2;

/// What became of a submitted job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submission {
    Queued,
    /// It was submitted before; nothing changed.
    Known(JobState),
}

impl Queue {
    /// Enqueues what is not known yet, by id. Atomic per 256. Single jobs that are submitted at the
    /// same time go together.
    pub async fn submit(&self, jobs: &[Job]) -> Result<Vec<Submission>, QueueError> {
        if let [job] = jobs {
            return Ok(vec![self.singles.ask(job.clone()).await?]);
        }
        let mut submissions = Vec::with_capacity(jobs.len());
        let mut under_way = FuturesOrdered::new();
        for some in jobs.chunks(BATCH) {
            if under_way.len() == AHEAD
                && let Some(done) = under_way.try_next().await?
            {
                submissions.extend(done);
            }
            under_way.push_back(submit_all(&self.link, some));
        }
        while let Some(done) = under_way.try_next().await? {
            submissions.extend(done);
        }
        Ok(submissions)
    }

    /// A job that waits ends at once; one that runs is told to stop, and ends when its runner says
    /// so or dies. The state is the one after that.
    pub async fn cancel(&self, id: JobId) -> Result<JobState, QueueError> {
        for _ in 0..LOOKS {
            let place = self.place(id).await?.ok_or(QueueError::NoSuchJob(id))?;
            let call = Call::new("cancel")
                .key(keys::record(id))
                .key(keys::lane(&place.lane))
                .keys([keys::DELAYED, keys::DONE, keys::COUNTERS, keys::CONTROL])
                .arg(id.to_string())
                .arg(&place.lane)
                .arg(&place.member)
                .arg(to_json(&Outcome::Cancelled)?);
            let word: String = self.link.call(&call).await?;
            match word.as_str() {
                "moved" => {}
                "unknown" => return Err(QueueError::NoSuchJob(id)),
                state => {
                    return parse_state(state)
                        .map_err(|e| QueueError::corrupt(format!("job {id}"), e));
                }
            }
        }
        Err(QueueError::corrupt(format!("job {id}"), "it never stayed in one place"))
    }

    /// Where a job is, to name the keys of what happens to it next.
    pub(crate) async fn place(&self, id: JobId) -> Result<Option<Place>, QueueError> {
        let mut get = redis::cmd("HMGET");
        get.arg(keys::record(id)).arg("l").arg("h");
        let (lane, home): (Option<String>, Option<String>) = self.link.query(&get).await?;
        Ok(home.map(|home| Place {
            member: keys::delayed_member(id, &home),
            lane: lane.unwrap_or(home),
        }))
    }
}

/// Up to 256, in one step.
pub(crate) async fn submit_all(link: &Link, jobs: &[Job]) -> Result<Vec<Submission>, QueueError> {
    let lanes = Lanes::of(jobs);
    let call = Call::new("submit")
        .key(keys::QUEUES)
        .keys(lanes.0.iter().map(|l| keys::lane(l)))
        .keys(jobs.iter().map(|j| keys::record(j.id)));
    let call = lanes.with_jobs(call, jobs)?;
    let words: Vec<String> = link.call(&call).await?;
    let submission = |word: &String| match word.as_str() {
        "new" => Ok(Submission::Queued),
        known => parse_state(known)
            .map(Submission::Known)
            .map_err(|e| QueueError::corrupt("a job's state", e)),
    };
    words.iter().map(submission).collect()
}

pub(crate) struct Place {
    pub(crate) lane: String,
    pub(crate) member: String,
}

/// The lanes that a batch of jobs may touch, by name.
pub(crate) struct Lanes(pub(crate) Vec<String>);

impl Lanes {
    pub(crate) fn of(jobs: &[Job]) -> Self {
        let mut queues: Vec<&str> = jobs.iter().map(|j| j.queue.as_str()).collect();
        queues.sort_unstable();
        queues.dedup();
        Self(queues.into_iter().flat_map(keys::lane_names).collect())
    }

    /// Appends the lanes and the jobs as the functions `submit` and `accept` read them.
    pub(crate) fn with_jobs(&self, call: Call, jobs: &[Job]) -> Result<Call, QueueError> {
        let mut call = call.num(self.0.len()).args(&self.0);
        for job in jobs {
            let home = keys::lane_name(&job.queue, keys::home(job));
            let place = self.0.iter().position(|l| *l == home).map_or(0, |p| p + 1);
            call = call.arg(job.id.to_string()).num(place).num(job.max_attempts).arg(to_json(job)?);
        }
        Ok(call)
    }
}

/// The outcome of a job that nobody could begin in time.
pub(crate) fn expired() -> Outcome {
    Outcome::Failed(Failure::new(
        Code::Expired,
        "its deadline was over before a runner could begin with it",
    ))
}

/// The outcome of a job whose runners died.
pub(crate) fn quarantined() -> Outcome {
    Outcome::Failed(Failure::new(
        Code::Quarantined,
        "its runner died in every attempt; it was set aside so that it takes no other with it",
    ))
}
