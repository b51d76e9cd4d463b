//! How attempts and jobs end, and what follows for others.

use std::time::Duration;

use rhizome_model::api::AttemptEnd;
use rhizome_model::{Code, Failure, Job, JobEvent, JobId, JobState, Outcome};
use rhizome_queue::{Attempt, QueueError, Retried, Submission};

use super::Flaw;
use super::state::State;
use crate::Result;
use crate::bed::now;

fn failed(code: Code, message: &str) -> Outcome {
    Outcome::Failed(Failure::new(code, message))
}

impl State {
    /// The attempt under way is over.
    fn close_attempt(&mut self, id: JobId, end: AttemptEnd, why: Option<Failure>) -> Result<()> {
        let entry = self.entry(id)?;
        if let Some(held) = entry.held.take() {
            entry.history.push(Attempt {
                number: entry.attempts,
                runner: held.runner,
                started_at: held.begun,
                ended_at: Some(now()),
                end: Some(end),
                failure: why,
            });
        }
        Ok(())
    }

    fn end(&mut self, id: JobId, event: JobEvent, outcome: Outcome) -> Result<()> {
        let entry = self.entry(id)?;
        entry.step(event)?;
        let (state, job) = (entry.state, entry.job.clone());
        let how = match state {
            JobState::Succeeded => AttemptEnd::Succeeded,
            JobState::Cancelled => AttemptEnd::Cancelled,
            JobState::Quarantined => AttemptEnd::Died,
            _ => AttemptEnd::Failed,
        };
        let why = match &outcome {
            Outcome::Failed(failure) => Some(failure.clone()),
            Outcome::Succeeded(_) | Outcome::Cancelled => None,
        };
        entry.outcome = Some(outcome);
        entry.ended_at = Some(now());
        self.close_attempt(id, how, why)?;
        if let Some(key) = &job.unique
            && self.unique.get(key) == Some(&id)
        {
            self.unique.remove(key);
        }
        self.leave_line(&job)?;
        self.tell_those_after(id, state)
    }

    fn leave_line(&mut self, job: &Job) -> Result<()> {
        let Some(name) = &job.order else { return Ok(()) };
        let Some(line) = self.orders.get_mut(name) else { return Ok(()) };
        line.retain(|id| *id != job.id);
        let Some(first) = line.front().copied() else {
            self.orders.remove(name);
            return Ok(());
        };
        self.entry(first)?.waits_in_line = false;
        self.let_go(first)
    }

    fn tell_those_after(&mut self, id: JobId, state: JobState) -> Result<()> {
        let waiting: Vec<JobId> = self
            .jobs
            .values_mut()
            .filter_map(|entry| {
                let waits = entry.state == JobState::Waiting && entry.waits_for.remove(&id);
                waits.then_some(entry.job.id)
            })
            .collect();
        for other in waiting {
            match state {
                JobState::Succeeded => self.let_go(other)?,
                _ => self.fail_in_vain(other)?,
            }
        }
        Ok(())
    }

    pub(super) fn fail_in_vain(&mut self, id: JobId) -> Result<()> {
        self.end(
            id,
            JobEvent::Fail,
            failed(Code::Conflict, "a job that it waited for did not succeed"),
        )
    }

    pub(super) fn expire(&mut self, id: JobId) -> Result<()> {
        self.end(id, JobEvent::Expire, failed(Code::Expired, "its deadline was over"))
    }

    pub(super) fn finish(&mut self, id: JobId, lease: u64, outcome: Outcome) -> Result<()> {
        let entry = self.entry(id)?;
        if entry.state.is_ended() && entry.ended_by == Some(lease) {
            return Ok(());
        }
        let entry = self.held(id, lease)?;
        entry.ended_by = Some(lease);
        let event = match &outcome {
            Outcome::Succeeded(_) => JobEvent::Succeed,
            Outcome::Failed(_) => JobEvent::Fail,
            Outcome::Cancelled => JobEvent::Cancel,
        };
        self.end(id, event, outcome)
    }

    pub(super) fn retry(
        &mut self,
        id: JobId,
        lease: u64,
        failure: &Failure,
        after: Duration,
    ) -> Result<Retried> {
        let entry = self.entry(id)?;
        if entry.ended_by == Some(lease) {
            return Ok(if entry.state.is_ended() { Retried::Exhausted } else { Retried::Later });
        }
        let entry = self.held(id, lease)?;
        entry.ended_by = Some(lease);
        entry.failure = Some(failure.clone());
        if entry.cancel_asked {
            self.end(id, JobEvent::Cancel, Outcome::Cancelled)?;
            return Ok(Retried::Exhausted);
        }
        if entry.attempts >= entry.job.max_attempts {
            entry.is_dead = true;
            self.end(id, JobEvent::Fail, Outcome::Failed(failure.clone()))?;
            return Ok(Retried::Exhausted);
        }
        entry.step(JobEvent::Retry)?;
        entry.due_at = now().saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
        self.close_attempt(id, AttemptEnd::Retried, Some(failure.clone()))?;
        Ok(Retried::Later)
    }

    /// The attempt was not made. One that is stale is not there to be given back.
    pub(super) fn release(&mut self, id: JobId, lease: u64) -> Result<()> {
        let counts = self.has(Flaw::CountsReleases);
        let entry = self.entry(id)?;
        if !entry.is_held_by(lease) {
            return Ok(());
        }
        if entry.cancel_asked {
            return self.end(id, JobEvent::Cancel, Outcome::Cancelled);
        }
        entry.step(JobEvent::Release)?;
        entry.was_under_way = true;
        entry.held = None;
        entry.attempts -= u32::from(!counts);
        Ok(())
    }

    /// Whoever worked on it is gone.
    pub(super) fn abandon(&mut self, id: JobId, lease: u64) -> Result<()> {
        if self.has(Flaw::ForgivesDeath) {
            return self.release(id, lease);
        }
        let entry = self.entry(id)?;
        if !entry.is_held_by(lease) {
            return Ok(());
        }
        if entry.cancel_asked {
            return self.end(id, JobEvent::Cancel, Outcome::Cancelled);
        }
        if entry.attempts >= entry.job.max_attempts {
            entry.is_dead = true;
            let outcome = failed(Code::Quarantined, "its runner died in every attempt");
            return self.end(id, JobEvent::Quarantine, outcome);
        }
        entry.step(JobEvent::Release)?;
        entry.was_under_way = true;
        self.close_attempt(id, AttemptEnd::Died, None)
    }

    pub(super) fn cancel(&mut self, id: JobId) -> Result<JobState> {
        let entry = self.entry(id)?;
        match entry.state {
            JobState::Running => entry.cancel_asked = true,
            state if !state.is_ended() => self.end(id, JobEvent::Cancel, Outcome::Cancelled)?,
            _ => {}
        }
        let state = self.entry(id)?.state;
        if !self.has(Flaw::KeepsChildren) {
            let children = self.jobs.values().filter(|entry| entry.job.parent == Some(id));
            let children: Vec<JobId> = children.map(|entry| entry.job.id).collect();
            for child in children {
                self.cancel(child)?;
            }
        }
        Ok(state)
    }

    pub(super) fn again(&mut self, id: JobId) -> Result<JobId> {
        let entry = self.entry(id)?;
        if !entry.state.is_ended() {
            return Err(QueueError::NotEnded(id));
        }
        let job = Job {
            id: JobId::again(id),
            again: Some(id),
            expires_at: None,
            starts_at: None,
            after: Vec::new(),
            ..entry.job.clone()
        };
        if let Submission::Duplicate(other) = self.submit(std::slice::from_ref(&job))?[0] {
            return Ok(other);
        }
        self.entry(id)?.is_dead = false;
        Ok(job.id)
    }
}
