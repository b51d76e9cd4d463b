//! What is known, and how it changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Weak;

use rhizome_model::api::{AccountLimits, OutputChunk, PoolMode};
use rhizome_model::{AccountId, Event, Failure, Job, JobEvent, JobId, JobState, Outcome};
use rhizome_queue::{Attempt, JobRecord, Periodic, QueueError, Submission};
use serde_json::Value;

use super::Flaw;
use crate::bed::now;
use crate::{Result, Seat};

/// Pieces of output that are kept of a job.
const OUTPUT_KEPT: usize = 10_000;
/// Jobs that one job may be after.
const MOST_AFTER: usize = 256;

#[derive(Default)]
pub(super) struct State {
    pub(super) flaw: Option<Flaw>,
    pub(super) jobs: HashMap<JobId, Entry>,
    /// The last number that was given to a job or a lease.
    pub(super) numbers: u64,
    pub(super) queues: BTreeSet<String>,
    pub(super) modes: HashMap<String, PoolMode>,
    pub(super) limits: HashMap<Option<AccountId>, AccountLimits>,
    /// When an account's bucket is full again, by queue.
    pub(super) full_at: HashMap<(String, AccountId), f64>,
    /// The last claim of each account, by queue.
    pub(super) turns: HashMap<(String, AccountId), u64>,
    pub(super) unique: HashMap<String, JobId>,
    /// The first of each may run.
    pub(super) orders: HashMap<String, VecDeque<JobId>>,
    pub(super) runners: HashMap<String, Serving>,
    /// With the last slot in which it came.
    pub(super) periodic: BTreeMap<String, (Periodic, i64)>,
    pub(super) events: Vec<Event>,
}

pub(super) struct Serving {
    pub(super) seat: Seat,
    pub(super) alive: Weak<()>,
    /// Since when it says nothing.
    pub(super) silent_since: Option<i64>,
}

pub(super) struct Entry {
    pub(super) job: Job,
    pub(super) state: JobState,
    /// When it came, as a number.
    pub(super) came: u64,
    pub(super) submitted_at: i64,
    /// While it is delayed.
    pub(super) due_at: i64,
    pub(super) was_under_way: bool,
    pub(super) attempts: u32,
    pub(super) held: Option<Held>,
    pub(super) cancel_asked: bool,
    pub(super) waits_for: BTreeSet<JobId>,
    pub(super) waits_in_line: bool,
    pub(super) history: Vec<Attempt>,
    pub(super) failure: Option<Failure>,
    pub(super) progress: Option<Value>,
    pub(super) output: VecDeque<OutputChunk>,
    /// Pieces that are no longer kept.
    pub(super) dropped: usize,
    pub(super) outcome: Option<Outcome>,
    pub(super) ended_at: Option<i64>,
    /// The lease that itself said the last end of an attempt.
    pub(super) ended_by: Option<u64>,
    pub(super) is_dead: bool,
}

/// Who works on a job.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) number: u64,
    pub(super) runner: String,
    pub(super) begun: i64,
}

impl Entry {
    fn new(job: Job, came: u64) -> Self {
        Self {
            state: JobState::Queued,
            came,
            submitted_at: now(),
            due_at: 0,
            was_under_way: false,
            attempts: 0,
            held: None,
            cancel_asked: false,
            waits_for: BTreeSet::new(),
            waits_in_line: false,
            history: Vec::new(),
            failure: None,
            progress: None,
            output: VecDeque::new(),
            dropped: 0,
            outcome: None,
            ended_at: None,
            ended_by: None,
            is_dead: false,
            job,
        }
    }

    pub(super) fn step(&mut self, event: JobEvent) -> Result<()> {
        let next = self.state.step(event).map_err(|illegal| QueueError::Corrupt {
            what: format!("job {}", self.job.id),
            cause: illegal.to_string(),
        })?;
        self.state = next;
        Ok(())
    }

    pub(super) fn is_held_by(&self, lease: u64) -> bool {
        self.held.as_ref().is_some_and(|held| held.number == lease)
    }

    pub(super) fn is_late(&self) -> bool {
        self.job.expires_at.is_some_and(|deadline| deadline <= now())
    }

    pub(super) fn print(&mut self, chunk: OutputChunk) {
        self.output.push_back(chunk);
        if self.output.len() > OUTPUT_KEPT {
            self.output.pop_front();
            self.dropped += 1;
        }
    }

    pub(super) fn record(&self) -> JobRecord {
        let mut history = self.history.clone();
        history.extend(self.held.as_ref().map(|held| Attempt {
            number: self.attempts,
            runner: held.runner.clone(),
            started_at: held.begun,
            ended_at: None,
            end: None,
            failure: None,
        }));
        JobRecord {
            job: self.job.clone(),
            state: self.state,
            attempts: self.attempts,
            runner: self.held.as_ref().map(|held| held.runner.clone()),
            outcome: self.outcome.clone(),
            failure: self.failure.clone(),
            submitted_at: self.submitted_at,
            started_at: history.last().map(|attempt| attempt.started_at),
            ended_at: self.ended_at,
            history,
            progress: self.progress.clone(),
            waits_for: self.waits_for.iter().copied().collect(),
        }
    }
}

impl State {
    pub(super) fn new(flaw: Option<Flaw>) -> Self {
        Self { flaw, ..Self::default() }
    }

    pub(super) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn entry(&mut self, id: JobId) -> Result<&mut Entry> {
        self.jobs.get_mut(&id).ok_or(QueueError::NoSuchJob(id))
    }

    /// The job of a lease that is still the job's.
    pub(super) fn held(&mut self, id: JobId, lease: u64) -> Result<&mut Entry> {
        let no_fence = self.has(Flaw::NoFence);
        let entry = self.entry(id)?;
        if entry.is_held_by(lease) || no_fence { Ok(entry) } else { Err(QueueError::Fenced) }
    }

    pub(super) fn submit(&mut self, jobs: &[Job]) -> Result<Vec<Submission>> {
        for job in jobs {
            check(job)?;
        }
        jobs.iter().map(|job| self.submit_one(job)).collect()
    }

    fn submit_one(&mut self, job: &Job) -> Result<Submission> {
        if let Some(known) = self.jobs.get(&job.id)
            && !(self.has(Flaw::TakesAgain) && known.state.is_ended())
        {
            return Ok(Submission::Known(known.state));
        }
        if let Some(key) = &job.unique {
            if let Some(other) = self.unique.get(key) {
                return Ok(Submission::Duplicate(*other));
            }
            self.unique.insert(key.clone(), job.id);
        }
        let came = self.number();
        self.queues.insert(job.queue.clone());
        let mut entry = Entry::new(job.clone(), came);
        let mut in_vain = false;
        for id in &job.after {
            match self.jobs.get(id).map(|other| other.state) {
                Some(JobState::Succeeded) => {}
                Some(state) if !state.is_ended() => _ = entry.waits_for.insert(*id),
                Some(_) | None => in_vain = true,
            }
        }
        if let Some(name) = job.order.as_ref().filter(|_| !in_vain) {
            let line = self.orders.entry(name.clone()).or_default();
            line.push_back(job.id);
            entry.waits_in_line = line.len() > 1 && self.flaw != Some(Flaw::NoOrder);
        }
        let waits = in_vain || !entry.waits_for.is_empty() || entry.waits_in_line;
        entry.state = if waits { JobState::Waiting } else { JobState::Queued };
        self.jobs.insert(job.id, entry);
        if in_vain {
            self.fail_in_vain(job.id)?;
        } else if !waits {
            self.put(job.id)?;
        }
        Ok(Submission::Queued)
    }

    /// A job that waits for nobody waits for its time, if it has one.
    fn put(&mut self, id: JobId) -> Result<()> {
        let entry = self.entry(id)?;
        if let Some(at) = entry.job.starts_at.filter(|at| *at > now()) {
            // It was never queued: that is where it begins.
            entry.state = JobState::Delayed;
            entry.due_at = at;
        }
        Ok(())
    }

    /// A job that waited may go on, if it waits for nothing else.
    pub(super) fn let_go(&mut self, id: JobId) -> Result<()> {
        let entry = self.entry(id)?;
        let waits = !entry.waits_for.is_empty() || entry.waits_in_line;
        if entry.state != JobState::Waiting || waits {
            return Ok(());
        }
        match entry.job.starts_at.filter(|at| *at > now()) {
            Some(at) => {
                entry.due_at = at;
                entry.step(JobEvent::Defer)
            }
            None => entry.step(JobEvent::Ready),
        }
    }
}

/// Bounds.
fn check(job: &Job) -> Result<()> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if job.queue.is_empty() || !job.queue.chars().all(is_name) || job.after.len() > MOST_AFTER {
        return Err(QueueError::Refused(format!("job {} cannot be kept", job.id)));
    }
    Ok(())
}
