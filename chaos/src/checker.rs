//! Judges a history: what was accepted ended, each once, and no two had the same job at a time.
//!
//! It believes nobody alone: who submitted, the runners' own lines, the deaths of runners, the
//! records of the queue and the queue's counters must tell the same story.

mod attempts;
mod together;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use rhizome_model::{JobId, JobState};
use rhizome_queue::{JobRecord, Queue, QueueError};

use crate::history::{Answer, History, Instant, Line, What};
use crate::plan::Plan;

/// What the queue says at the end.
#[derive(Debug, Clone, Default)]
pub struct Records {
    pub jobs: HashMap<JobId, JobRecord>,
    /// Ends that it counted, by state; none where other jobs were counted too.
    pub ended: Option<BTreeMap<JobState, u64>>,
}

impl Records {
    /// Of these jobs, and the counters of these queues.
    pub async fn read(queue: &Queue, jobs: &[JobId], queues: &[&str]) -> Result<Self, QueueError> {
        let mut records = Self::default();
        for id in jobs {
            if let Some(record) = queue.job(*id).await? {
                records.jobs.insert(*id, record);
            }
        }
        let mut ended = BTreeMap::<JobState, u64>::new();
        for stats in queue.stats().await? {
            if queues.contains(&stats.queue.as_str()) {
                stats
                    .ended
                    .into_iter()
                    .for_each(|(state, n)| *ended.entry(state).or_default() += n);
            }
        }
        records.ended = Some(ended);
        Ok(records)
    }
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// None where it is about all of them.
    pub job: Option<JobId>,
    pub why: String,
}

#[derive(Debug, Clone, Default)]
pub struct Verdict {
    pub accepted: usize,
    /// Submitted without an answer: neither must they be there nor must they not.
    pub indeterminate: usize,
    /// Refused, because another with the same key had not ended.
    pub refused: usize,
    pub ended: BTreeMap<JobState, usize>,
    pub attempts: usize,
    pub deaths: usize,
    /// Jobs that two attempts had at a time, or that ended more than once.
    pub duplicates: usize,
    /// Accepted, and gone or not ended.
    pub lost: usize,
    pub wrong: Vec<Wrong>,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        self.wrong.is_empty() && self.lost == 0 && self.duplicates == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "accepted {}, indeterminate {}, ", self.accepted, self.indeterminate)?;
        write!(f, "refused as duplicates {}, ended:", self.refused)?;
        for (state, n) in &self.ended {
            write!(f, " {state:?} {n}")?;
        }
        write!(f, "; attempts {}, runners died {}", self.attempts, self.deaths)?;
        write!(f, "; duplicates {}, lost {}", self.duplicates, self.lost)?;
        for Wrong { job, why } in self.wrong.iter().take(20) {
            match job {
                Some(job) => write!(f, "\n  WRONG, job {job}: {why}")?,
                None => write!(f, "\n  WRONG: {why}")?,
            }
        }
        match self.wrong.len().saturating_sub(20) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// All that is known of one job.
struct Story<'a> {
    id: JobId,
    lines: Vec<&'a Line>,
    record: Option<&'a JobRecord>,
    attempts: Vec<attempts::Attempt<'a>>,
}

impl Story<'_> {
    fn any(&self, is: impl Fn(&What) -> bool) -> bool {
        self.lines.iter().any(|line| is(&line.what))
    }

    fn is_accepted(&self) -> bool {
        self.any(|what| matches!(what, What::Accepted | What::Known { .. }))
    }

    fn state(&self) -> Option<JobState> {
        self.record.map(|record| record.state)
    }

    fn ended_well(&self) -> bool {
        self.state() == Some(JobState::Succeeded)
    }

    /// Whether a runner may have died in one of so many attempts; also before it could say that it
    /// began.
    fn may_have_died(&self, attempts: u32) -> bool {
        let last = self.attempts.last().map_or(0, |attempt| attempt.number);
        last < attempts || self.attempts.iter().any(attempts::Attempt::may_have_died)
    }

    /// When somebody saw first that it had ended, and how.
    fn seen_ended(&self) -> impl Iterator<Item = (Instant, JobState)> {
        self.lines.iter().filter_map(|line| match &line.what {
            What::Known { state } | What::Cancelled { state } | What::Seen { state } => {
                state.is_ended().then_some((line.at, *state))
            }
            What::Told { answer: Answer::Finished(state), .. } => Some((line.at, *state)),
            _ => None,
        })
    }
}

/// All that went wrong, and what there was of everything.
pub fn check(history: &History, records: &Records) -> Verdict {
    let (lines, deaths) = history.told();
    let deaths: HashMap<_, _> = deaths.into_iter().map(|d| (d.runner, d.at)).collect();
    let mut by_job: BTreeMap<JobId, Vec<&Line>> = BTreeMap::new();
    for line in &lines {
        by_job.entry(line.job).or_default().push(line);
    }
    let mut verdict = Verdict { deaths: deaths.len(), ..Verdict::default() };
    let mut stories = BTreeMap::new();
    for (id, lines) in by_job {
        let attempts = attempts::of(&lines, &deaths, |why| verdict.blame(id, why));
        stories.insert(id, Story { id, lines, record: records.jobs.get(&id), attempts });
    }
    for story in stories.values() {
        verdict.attempts += story.attempts.len();
        verdict.judge(story);
    }
    together::judge(&stories, |id, why| verdict.blame(id, why));
    verdict.count(records);
    verdict
}

impl Verdict {
    fn blame(&mut self, job: JobId, why: impl Into<String>) {
        self.wrong.push(Wrong { job: Some(job), why: why.into() });
    }

    fn judge(&mut self, story: &Story<'_>) {
        let id = story.id;
        if !story.any(|what| matches!(what, What::Submitting)) {
            return self.blame(id, "nobody submitted it");
        }
        if story.lines.iter().filter(|line| line.what == What::Accepted).count() > 1 {
            self.blame(id, "it was accepted as new twice");
        }
        if story.is_accepted() {
            self.accepted += 1;
        } else if story.any(|what| matches!(what, What::Unanswered)) {
            self.indeterminate += 1;
        } else {
            self.refused += 1;
            if story.record.is_some() || !story.attempts.is_empty() {
                self.blame(id, "it was refused, and is there all the same");
            }
            return;
        }
        match story.state() {
            Some(state) if state.is_ended() => {
                *self.ended.entry(state).or_default() += 1;
                self.judge_end(story, state);
            }
            // Its submission may never have arrived.
            None if !story.is_accepted() && story.attempts.is_empty() => {}
            None => {
                self.lost += 1;
                self.blame(id, "it is gone");
            }
            Some(state) => {
                self.lost += 1;
                self.blame(id, format!("it never ended: {state:?}"));
            }
        }
        let before = self.wrong.len();
        attempts::judge(story, |why| self.blame(id, why));
        self.duplicates += usize::from(self.wrong.len() > before);
    }

    fn judge_end(&mut self, story: &Story<'_>, state: JobState) {
        let id = story.id;
        for (_, seen) in story.seen_ended().filter(|(_, seen)| *seen != state) {
            self.blame(id, format!("it was seen as {seen:?}, and is {state:?}"));
        }
        let Some(record) = story.record else { return };
        let job = &record.job;
        let plan = match Plan::of(job) {
            Ok(plan) => plan,
            Err(error) => return self.blame(id, format!("its record has another job: {error:#}")),
        };
        let by_plan = match state {
            JobState::Succeeded => !plan.fails && plan.failures < job.max_attempts,
            JobState::Failed => plan.fails || plan.failures > 0 || !job.after.is_empty(),
            JobState::Cancelled => {
                job.parent.is_some() || story.any(|what| matches!(what, What::Cancelling))
            }
            JobState::Expired => job.expires_at.is_some(),
            JobState::Quarantined => story.may_have_died(record.attempts),
            JobState::Waiting | JobState::Queued | JobState::Delayed | JobState::Running => false,
        };
        if !by_plan {
            self.blame(id, format!("it cannot have ended as {state:?}: {plan:?}"));
        }
        if state == JobState::Succeeded && !story.attempts.iter().any(|a| a.ended.is_some()) {
            self.blame(id, "it succeeded, though no attempt of it came to its end");
        }
        if record.attempts > job.max_attempts {
            self.blame(id, format!("{} attempts of {}", record.attempts, job.max_attempts));
        }
    }

    /// The queue counts the end of a job in the step that ends it: twice ended is twice counted.
    fn count(&mut self, records: &Records) {
        let Some(counted) = &records.ended else { return };
        let states: HashSet<_> = counted.keys().chain(self.ended.keys()).copied().collect();
        for state in states {
            let ours = self.ended.get(&state).copied().unwrap_or_default() as u64;
            let theirs = counted.get(&state).copied().unwrap_or_default();
            if ours != theirs {
                let why = format!("{ours} jobs are {state:?}, and {theirs} ends were counted");
                self.wrong.push(Wrong { job: None, why });
                self.duplicates += usize::from(theirs > ours);
            }
        }
    }
}

/// Everything about one job, for who wants to know what happened to it.
pub fn story_of(history: &History, records: &Records, id: JobId) -> String {
    let (lines, deaths) = history.told();
    let lines: Vec<_> = lines.into_iter().filter(|line| line.job == id).collect();
    let begin = lines.first().map_or(0, |line| line.at);
    let seconds = |at: Instant| (at - begin) as f64 / 1e9;
    let mut told: Vec<_> = lines.iter().map(|line| (line.at, format!("{:?}", line.what))).collect();
    let had_it = |runner: &str| {
        lines.iter().any(|l| matches!(&l.what, What::Began { runner: by, .. } if by == runner))
    };
    for death in deaths.iter().filter(|death| had_it(&death.runner)) {
        told.push((death.at, format!("{} died", death.runner)));
    }
    told.sort();
    let mut text = format!("job {id}\n");
    for (at, what) in told {
        text += &format!("  {:>10.4} s  {what}\n", seconds(at));
    }
    text + &format!("  record: {:?}\n", records.jobs.get(&id))
}
