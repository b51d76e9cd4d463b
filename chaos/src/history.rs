//! What happened, as those tell it to whom it happened; nothing of it is kept in Redis.
//!
//! All processes of the machine read the same clock, so their lines can be put in order.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use nix::time::{ClockId, clock_gettime};
use rhizome_model::{JobId, JobState};
use serde::{Deserialize, Serialize};

/// Nanoseconds since the machine started.
pub type Instant = i64;

pub fn now() -> Instant {
    const SECOND: i64 = 1_000_000_000;
    // It has no reason to fail: the clock exists wherever we run.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() * SECOND + time.tv_nsec())
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub at: Instant,
    pub job: JobId,
    #[serde(flatten)]
    pub what: What,
}

/// What can be told of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    // By who submits and cancels.
    Submitting,
    Accepted,
    Known {
        state: JobState,
    },
    /// Refused, because this one has the same key and has not ended.
    Duplicate {
        of: JobId,
    },
    /// Nobody knows whether it was accepted.
    Unanswered,
    Cancelling,
    Cancelled {
        state: JobState,
    },
    /// Somebody looked, and it had ended.
    Seen {
        state: JobState,
    },
    // By runners.
    Began {
        attempt: u32,
        runner: String,
        pid: u32,
    },
    /// Nothing is done any more; now the queue is told.
    Ended {
        attempt: u32,
        runner: String,
    },
    /// What the queue answered to that.
    Told {
        attempt: u32,
        runner: String,
        answer: Answer,
    },
}

/// How an attempt ended, once the queue has answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Finished(JobState),
    Retried,
    Exhausted,
    /// It was given back as if it had not been tried.
    Released,
    /// The lease was dropped: this answers nothing, but the attempt is given back and counts.
    Dropped,
    Fenced,
    /// The runner heard before that the lease was lost.
    Lost,
    Unavailable,
}

/// The death of a runner, as who waited for it saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    pub at: Instant,
    pub runner: String,
}

/// Collects what one process sees; cheap to clone.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    lines: Vec<Line>,
    deaths: Vec<Death>,
}

impl History {
    pub fn note(&self, job: JobId, what: What) {
        let line = Line { at: now(), job, what };
        self.locked(|inner| inner.lines.push(line));
    }

    pub fn note_death(&self, runner: &str) {
        let death = Death { at: now(), runner: runner.to_owned() };
        self.locked(|inner| inner.deaths.push(death));
    }

    /// Takes in what other processes wrote.
    pub fn read(&self, effects: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(effects)
            .with_context(|| format!("cannot read {}", effects.display()))?;
        for line in text.lines() {
            let line = serde_json::from_str(line).with_context(|| format!("a line: {line}"))?;
            self.locked(|inner| inner.lines.push(line));
        }
        Ok(())
    }

    /// All of it in order of time.
    pub fn told(&self) -> (Vec<Line>, Vec<Death>) {
        let (mut lines, deaths) = self.locked(|i| (i.lines.clone(), i.deaths.clone()));
        lines.sort_by_key(|line| line.at);
        (lines, deaths)
    }

    fn locked<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where a runner writes what it does.
#[derive(Clone)]
pub enum Effects {
    /// A file that several processes write, one line in one write.
    File(Arc<File>),
    /// A runner in this process.
    Here(History),
}

impl Effects {
    pub fn append_to(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self::File(Arc::new(file)))
    }

    pub fn note(&self, job: JobId, what: What) -> anyhow::Result<()> {
        match self {
            Self::Here(history) => history.note(job, what),
            Self::File(file) => {
                let mut line = serde_json::to_vec(&Line { at: now(), job, what })?;
                line.push(b'\n');
                let written = (&**file).write(&line)?;
                anyhow::ensure!(written == line.len(), "half a line was written");
            }
        }
        Ok(())
    }
}
