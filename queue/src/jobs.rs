//! Submitting, cancelling, and doing again.

use std::collections::HashSet;

use futures_util::TryStreamExt;
use futures_util::stream::FuturesOrdered;
use rhizome_model::{Code, Failure, Job, JobId, JobState, Outcome};
use serde::Serialize;

use crate::link::{Call, Link};
use crate::member::{EffectOf, Identity, Member, Places, is_special};
use crate::record::{Place, parse_state, to_json};
use crate::stored::encode;
use crate::{BATCH, Queue, QueueError, keys};

/// A job moves between two looks; it does not do so for ever.
const LOOKS: usize = 100;
/// Batches of one submission that are on their way at a time: redis-server takes one in while the
/// next is written.
const AHEAD: usize = 2;
/// Jobs that one job may be after.
const MOST_AFTER: usize = 256;

/// What became of a submitted job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submission {
    Queued,
    /// It was submitted before; nothing changed.
    Known(JobState),
    /// It was not taken: this other job with its `unique` key has not ended.
    Duplicate(JobId),
}

impl Queue {
    /// Enqueues what is not known yet, by id. Atomic per 256. Single jobs that are submitted at the
    /// same time go together.
    pub async fn submit(&self, jobs: &[Job]) -> Result<Vec<Submission>, QueueError> {
        for job in jobs {
            check(job)?;
        }
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

    /// A job that has not begun ends at once; one that runs is told to stop, and ends when its
    /// runner says so or dies. The jobs that it asked for go with it. The state is the one after that.
    pub async fn cancel(&self, id: JobId) -> Result<JobState, QueueError> {
        let state = self.withdraw(id, "cancelled", &Outcome::Cancelled).await?;
        let mut told = HashSet::from([id]);
        let mut left = self.children(id).await?;
        while let Some(child) = left.pop() {
            if !told.insert(child) {
                continue;
            }
            match self.withdraw(child, "cancelled", &Outcome::Cancelled).await {
                Ok(_) | Err(QueueError::NoSuchJob(_)) => {}
                Err(error) => return Err(error),
            }
            left.extend(self.children(child).await?);
        }
        Ok(state)
    }

    /// Ends a job unless it has begun. The state is the one after that.
    pub async fn cancel_unbegun(&self, id: JobId) -> Result<JobState, QueueError> {
        self.withdraw(id, "unbegun", &Outcome::Cancelled).await
    }

    /// The jobs that a job asked for.
    async fn children(&self, id: JobId) -> Result<Vec<JobId>, QueueError> {
        let mut list = redis::cmd("SMEMBERS");
        list.arg(keys::children(id));
        let children: Vec<String> = self.link.query(&list).await?;
        let parse = |child: &String| child.parse();
        let children = children.iter().map(parse).collect::<Result<_, _>>();
        children.map_err(|e| QueueError::corrupt("a child of a job", e))
    }

    /// Ends a job that has not begun.
    pub(crate) async fn withdraw(
        &self,
        id: JobId,
        end: &str,
        outcome: &Outcome,
    ) -> Result<JobState, QueueError> {
        for _ in 0..LOOKS {
            let place = self.place(id).await?.ok_or(QueueError::NoSuchJob(id))?;
            let (identity, lane) = match place {
                Place::Ended(state) => return Ok(state),
                Place::Live { identity, lane } => (identity, lane),
            };
            let call = identity.write(Call::shared("withdraw"));
            let call = call.key(keys::lane(&lane)).arg(&lane).arg(end).arg(to_json(outcome)?);
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

    /// Does an ended job again, as a new job whose id is derived from the old one: asking twice is
    /// the same job. If it is a dead letter it no longer is.
    pub async fn again(&self, id: JobId) -> Result<JobId, QueueError> {
        let record = self.job(id).await?.ok_or(QueueError::NoSuchJob(id))?;
        if !record.state.is_ended() {
            return Err(QueueError::NotEnded(id));
        }
        let job = Job {
            id: JobId::again(id),
            again: Some(id),
            ends: None,
            expires_at: None,
            starts_at: None,
            after: Vec::new(),
            ..record.job
        };
        let queue = job.queue.clone();
        if let [Submission::Duplicate(other)] = self.submit(std::slice::from_ref(&job)).await?[..] {
            return Ok(other);
        }
        self.forget_dead(&queue, id).await?;
        Ok(job.id)
    }
}

/// Bounds that redis-server relies on.
fn check(job: &Job) -> Result<(), QueueError> {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if job.queue.is_empty() || !job.queue.chars().all(name) {
        let message = format!("'{}' cannot be a queue: use letters, digits, - _ and .", job.queue);
        return Err(QueueError::Refused(message));
    }
    if job.after.len() > MOST_AFTER {
        let message = format!("a job can be after {MOST_AFTER} others, not {}", job.after.len());
        return Err(QueueError::Refused(message));
    }
    Ok(())
}

/// What is special about a job, as the functions read it.
#[derive(Serialize)]
struct Special<'a> {
    member: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    starts_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends: Option<&'a str>,
    #[serde(skip_serializing_if = "<[JobId]>::is_empty")]
    after: &'a [JobId],
    /// Its outcome, if one that it is after ended otherwise than well.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

/// Appends jobs as the functions `submit` and `accept` read them.
pub(crate) fn with_jobs(call: Call, jobs: &[Job]) -> Result<Call, QueueError> {
    let homes: Vec<_> = jobs.iter().map(keys::home).collect();
    let places = Places::of(homes.iter().map(String::as_str));
    let mut call = places.write(call);
    for (job, home) in jobs.iter().zip(homes) {
        call = call.key(keys::record(job.id)).num(places.place(&home)).arg(encode(job)?);
        if !is_special(job) {
            call = call.arg("");
            continue;
        }
        let more = keys::more(job.id);
        let order = job.order.as_ref().map_or_else(|| more.clone(), |name| keys::order(name));
        let children = job.parent.map_or_else(|| more.clone(), keys::children);
        let ends = EffectOf::job(job);
        let journal = ends.as_ref().map_or_else(|| more.clone(), |effect| effect.journal.clone());
        call = call.keys([more, order, children, journal]);
        call = call.keys(job.after.iter().map(|id| keys::record(*id)));
        let special = Special {
            member: Member { id: job.id, home }.to_string(),
            unique: job.unique.as_deref(),
            order: job.order.as_deref(),
            starts_at: job.starts_at,
            expires_at: job.expires_at,
            parent: job.parent,
            ends: ends.as_ref().map(|effect| effect.name.as_str()),
            after: &job.after,
            failed: (!job.after.is_empty()).then(|| to_json(&in_vain())).transpose()?,
        };
        call = call.arg(to_json(&special)?);
    }
    Ok(call)
}

/// Up to 256, in one step.
pub(crate) async fn submit_all(link: &Link, jobs: &[Job]) -> Result<Vec<Submission>, QueueError> {
    let call = with_jobs(Call::shared("submit"), jobs)?;
    let odd: Vec<String> = link.call(&call).await?;
    let mut submissions = vec![Submission::Queued; jobs.len()];
    let corrupt = |e: &dyn ToString| QueueError::corrupt("what was submitted", e.to_string());
    for pair in odd.chunks_exact(2) {
        let at: usize = pair[0].parse().map_err(|e| corrupt(&e))?;
        let (Some(job), Some(place)) = (jobs.get(at - 1), submissions.get_mut(at - 1)) else {
            return Err(corrupt(&at));
        };
        *place = match pair[1].as_str() {
            "known" => Submission::Known(crate::record::state(link, job.id).await?),
            other => Submission::Duplicate(other.parse().map_err(|e| corrupt(&e))?),
        };
    }
    Ok(submissions)
}

impl Queue {
    /// Where a job is, to name the keys of what happens to it next.
    pub(crate) async fn place(&self, id: JobId) -> Result<Option<Place>, QueueError> {
        for _ in 0..LOOKS {
            if let Some(place) = crate::record::place(&self.link, id).await? {
                return Ok(place);
            }
        }
        Err(QueueError::corrupt(format!("job {id}"), "it is nowhere, though its record says so"))
    }
}

/// What the functions need to end a job of which only its content is known.
pub(crate) fn identity(content: &crate::stored::Content, lane: &str) -> Identity {
    match content.job() {
        Ok(job) => Identity::of(&job),
        Err(_) => {
            let account = lane.split(':').nth(1).filter(|part| part.parse::<u64>().is_ok());
            let account = account.or(content.account.as_deref()).unwrap_or("0");
            Identity::unreadable(content.id, lane, account)
        }
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

/// The outcome of a job that waited for one that did not end well.
pub(crate) fn in_vain() -> Outcome {
    Outcome::Failed(Failure::new(
        Code::Conflict,
        "a job that it waited for did not succeed, or is not known",
    ))
}
