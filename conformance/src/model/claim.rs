//! Who starts next, and what time does.

use rhizome_model::api::PoolMode;
use rhizome_model::{AccountId, DeploymentId, Job, JobEvent, JobId, JobState, Version};
use rhizome_queue::QueueError;

use super::Flaw;
use super::state::{Held, State};
use crate::bed::now;
use crate::{Result, Seat};

/// A lease, as it is handed out.
pub(super) struct Claimed {
    pub(super) job: Job,
    pub(super) attempt: u32,
    pub(super) number: u64,
}

impl State {
    /// The next job for a runner; none when there is none, or its slots are taken.
    pub(super) fn claim(&mut self, seat: &Seat) -> Result<Option<Claimed>> {
        let holds = |held: &Held| held.runner == seat.name;
        let taken = self.jobs.values().filter(|entry| entry.held.as_ref().is_some_and(holds));
        if taken.count() >= seat.slots {
            return Ok(None);
        }
        for queue in &seat.queues {
            let mode = self.modes.get(queue).copied().unwrap_or_default();
            if mode != PoolMode::Running && !self.has(Flaw::NoPause) {
                continue;
            }
            if let Some(id) = self.next_of(queue)? {
                return self.begin(id, seat).map(Some);
            }
        }
        Ok(None)
    }

    /// Of the accounts that may start something, the one whose last turn is the longest ago.
    fn next_of(&mut self, queue: &str) -> Result<Option<JobId>> {
        if !self.has(Flaw::StartsLate) {
            let ready = self.jobs.values().filter(|e| e.state == JobState::Queued && e.is_late());
            let late: Vec<JobId> = ready.map(|entry| entry.job.id).collect();
            for id in late {
                self.expire(id)?;
            }
        }
        let no_turns = self.has(Flaw::NoTurns);
        let is_ready = |state, of: &str| state == JobState::Queued && of == queue;
        let ready = self.jobs.values().filter(|e| is_ready(e.state, &e.job.queue));
        let turn = |account: AccountId| {
            let last = self.turns.get(&(queue.to_owned(), account)).copied();
            if no_turns { 0 } else { last.unwrap_or_default() }
        };
        let mut ready: Vec<_> = ready
            .map(|e| {
                let in_account = (!e.was_under_way, e.job.priority, e.came);
                (turn(e.job.account), in_account, e.job.account, e.job.id)
            })
            .collect();
        ready.sort_unstable();
        Ok(ready.into_iter().find(|(.., account, _)| self.may_start(queue, *account)).map(|r| r.3))
    }

    /// Whether the account's limits let it start one more.
    fn may_start(&self, queue: &str, account: AccountId) -> bool {
        let Some(limits) = self.limits_of(account) else { return true };
        let runs = |of: &Job| of.account == account && of.queue == queue;
        let running = self.jobs.values().filter(|e| e.held.is_some() && runs(&e.job)).count();
        if limits.concurrency.is_some_and(|most| running >= most as usize) {
            return false;
        }
        // The generic cell rate algorithm: when the bucket is full again says how much is in it.
        limits.rate_per_s.is_none_or(|rate| {
            let full_at = self.full_at.get(&(queue.to_owned(), account)).copied();
            let behind = (full_at.unwrap_or_default() - now() as f64).max(0.0);
            f64::from(limits.burst.unwrap_or(1)) - behind / (1000.0 / rate) >= 1.0 - 1e-9
        })
    }

    fn limits_of(&self, account: AccountId) -> Option<rhizome_model::api::AccountLimits> {
        if self.has(Flaw::NoLimits) {
            return None;
        }
        self.limits.get(&Some(account)).or_else(|| self.limits.get(&None)).copied()
    }

    fn begin(&mut self, id: JobId, seat: &Seat) -> Result<Claimed> {
        let number = self.number();
        let entry = self.entry(id)?;
        entry.step(JobEvent::Claim)?;
        entry.attempts += 1;
        entry.held = Some(Held { number, runner: seat.name.clone(), begun: now() });
        let (job, attempt) = (entry.job.clone(), entry.attempts);
        let of = (job.queue.clone(), job.account);
        if let Some(rate) = self.limits_of(job.account).and_then(|limits| limits.rate_per_s) {
            let full_at = self.full_at.entry(of.clone()).or_default();
            *full_at = full_at.max(now() as f64) + 1000.0 / rate;
        }
        self.turns.insert(of, number);
        Ok(Claimed { job, attempt, number })
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, silence: i64) -> Result<()> {
        let waits =
            |state| matches!(state, JobState::Waiting | JobState::Queued | JobState::Delayed);
        let late = self.jobs.values().filter(|entry| waits(entry.state) && entry.is_late());
        let late: Vec<JobId> = late.map(|entry| entry.job.id).collect();
        for id in late {
            self.expire_if(id, waits)?;
        }
        let mut due: Vec<_> = self.jobs.values_mut().collect();
        due.retain(|entry| entry.state == JobState::Delayed && entry.due_at <= now());
        due.sort_unstable_by_key(|entry| entry.due_at);
        for entry in due {
            entry.step(JobEvent::Due)?;
        }
        // Those that are due line up anew, in the order of their times.
        let mut due: Vec<_> = self.jobs.values().filter(|e| e.due_at != 0).collect();
        due.retain(|entry| entry.state == JobState::Queued);
        let mut due: Vec<(i64, JobId)> = due.iter().map(|e| (e.due_at, e.job.id)).collect();
        due.sort_unstable();
        for (_, id) in due {
            let came = self.number();
            let entry = self.entry(id)?;
            (entry.came, entry.due_at) = (came, 0);
        }
        self.submit_periodic()?;
        self.find_silent(silence)
    }

    /// Unless it ended together with another.
    fn expire_if(&mut self, id: JobId, waits: impl Fn(JobState) -> bool) -> Result<()> {
        if waits(self.entry(id)?.state) { self.expire(id) } else { Ok(()) }
    }

    fn submit_periodic(&mut self) -> Result<()> {
        let mut due = Vec::new();
        for (name, (periodic, done)) in &mut self.periodic {
            let slot = slot(periodic.every);
            if slot > *done {
                *done = slot;
                let deployment = "periodic".parse().map_err(|_| name.clone());
                let name = deployment.map_err(QueueError::Refused)?;
                let deployment = DeploymentId { account: periodic.job.account, name };
                let what = format!("{} {slot}", periodic.name);
                let id = JobId::derived(&deployment, Version(0), &what);
                due.push(Job { id, ..periodic.job.clone() });
            }
        }
        self.submit(&due).map(|_| ())
    }

    fn find_silent(&mut self, silence: i64) -> Result<()> {
        let mut silent = Vec::new();
        for (name, serving) in &mut self.runners {
            if serving.alive.strong_count() == 0 {
                let since = *serving.silent_since.get_or_insert_with(now);
                if now() - since >= silence {
                    silent.push(name.clone());
                }
            }
        }
        silent.iter().try_for_each(|name| self.bury(name))
    }

    /// A runner is given up.
    pub(super) fn bury(&mut self, runner: &str) -> Result<()> {
        self.runners.remove(runner);
        for (id, lease) in self.held_by(runner) {
            self.abandon(id, lease)?;
        }
        Ok(())
    }

    pub(super) fn held_by(&self, runner: &str) -> Vec<(JobId, u64)> {
        let held = self.jobs.values().filter_map(|e| Some((e.job.id, e.held.as_ref()?)));
        held.filter(|(_, held)| held.runner == runner).map(|(id, held)| (id, held.number)).collect()
    }
}

/// The number of the slot that is now.
pub(super) fn slot(every: std::time::Duration) -> i64 {
    now() / i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1)
}
