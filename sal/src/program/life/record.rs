//! What is known of a program, and what the next shim takes over of it.

use std::time::Duration;

use rhizome_model::Backoff;
use serde::{Deserialize, Serialize};

use super::Life;

/// Between an end and the next start. There is no jitter: programs do not share what they wait for.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
/// Who ran this long has recovered: the next end counts as the first.
pub(super) const RECOVERED_MS: u64 = 10 * 60 * 1000;
/// Ends that are remembered until somebody has told of them.
pub(super) const ENDS: usize = 16;

/// Written after each step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::program) struct Record {
    /// The shim's run that it is about.
    pub run: String,
    #[serde(flatten)]
    pub life: Life,
    pub restarts: u32,
    /// Ends in a row, without recovery in between.
    pub failures: u32,
    pub exit_code: Option<i32>,
    /// Unix milliseconds.
    pub started_at: Option<i64>,
    /// Unix milliseconds when the shim's clock was at zero.
    #[serde(default)]
    pub epoch: i64,
    /// What it came to by itself, the newest last.
    #[serde(default)]
    pub ends: Vec<End>,
}

/// An end that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::program) struct End {
    /// From 1, over all shims of a program.
    pub number: u64,
    /// Unix milliseconds.
    pub at: i64,
    pub reason: String,
    /// Until it is started again; none when it rests.
    pub pause_ms: Option<u64>,
}

/// What a shim takes over from the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(in crate::program) restarts: u32,
    pub(in crate::program) failures: u32,
    pub(in crate::program) exit_code: Option<i32>,
    pub(in crate::program) started_at: Option<i64>,
    pub(in crate::program) ends: Vec<End>,
    /// Unix milliseconds before which it does not start, and why.
    pub pause: Option<(i64, String)>,
}

impl Past {
    /// Whether it does not start before a pause is over. `now` is Unix milliseconds.
    pub fn waits(&self, now: i64) -> bool {
        self.pause.as_ref().is_some_and(|(until, _)| *until > now)
    }
}

impl Record {
    /// `epoch` is now, in Unix milliseconds.
    pub fn new(run: String, past: Past, epoch: i64) -> Self {
        let Past { restarts, failures, exit_code, started_at, ends, pause } = past;
        let left = pause.and_then(|(until, reason)| {
            let left = u64::try_from(until.saturating_sub(epoch)).ok().filter(|ms| *ms > 0)?;
            // The clock may have been set back meanwhile.
            Some((left.min(pause_ms(failures)), reason))
        });
        let life = match left {
            Some((until, reason)) => Life::BackingOff { until, reason },
            None => Life::Starting { stop: None },
        };
        Self { run, life, restarts, failures, exit_code, started_at, epoch, ends }
    }

    /// What the next shim takes over when this one is gone without an end. The first loss costs no
    /// pause, nor does one of the whole node; who is lost again and again waits as who fails does.
    pub fn past(&self, now: i64, booted_at: i64) -> Past {
        let recovered =
            self.started_at.is_some_and(|at| now.saturating_sub(at) >= RECOVERED_MS as i64);
        let before = if recovered { 0 } else { self.failures };
        let (failures, pause) = match &self.life {
            Life::BackingOff { reason, .. } => {
                (self.failures, self.next_start_at().map(|at| (at, reason.clone())))
            }
            Life::Interrupted => (before, None),
            _ if self.is_before(booted_at) => (before, None),
            Life::Starting { .. } | Life::Running { .. } | Life::Stopping { .. } => {
                let pause = if before == 0 { 0 } else { pause_ms(before) };
                let until = now.saturating_add(i64::try_from(pause).unwrap_or(i64::MAX));
                (before.saturating_add(1), Some((until, "it was lost again".to_owned())))
            }
            Life::Exited { .. } | Life::Stopped | Life::Failed { .. } => (0, None),
        };
        let waits = pause.as_ref().is_some_and(|(until, _)| *until > now);
        let restarts = if waits { self.restarts } else { self.restarts.saturating_add(1) };
        let (exit_code, started_at, ends) = (self.exit_code, self.started_at, self.ends.clone());
        Past { restarts, failures, exit_code, started_at, ends, pause }
    }

    /// What a start on request takes over: no pause, and no failures.
    pub fn past_by_request(&self) -> Past {
        let restarts = self.restarts.saturating_add(1);
        Past { restarts, exit_code: self.exit_code, ends: self.ends.clone(), ..Past::default() }
    }

    /// Whether it is of a time before the node was booted.
    pub fn is_before(&self, booted_at: i64) -> bool {
        self.epoch < booted_at
    }

    /// Unix milliseconds.
    pub fn next_start_at(&self) -> Option<i64> {
        match self.life {
            Life::BackingOff { until, .. } => Some(self.at(until)),
            _ => None,
        }
    }

    pub fn last_exit(&self) -> Option<&str> {
        self.ends.last().map(|end| end.reason.as_str())
    }

    fn at(&self, clock: u64) -> i64 {
        self.epoch.saturating_add(i64::try_from(clock).unwrap_or(i64::MAX))
    }

    pub(super) fn note_end(&mut self, now: u64, reason: &str, pause_ms: Option<u64>) {
        let number = self.ends.last().map_or(0, |end| end.number) + 1;
        if self.ends.len() == ENDS {
            self.ends.remove(0);
        }
        self.ends.push(End { number, at: self.at(now), reason: reason.to_owned(), pause_ms });
    }
}

pub(super) fn pause_ms(failures: u32) -> u64 {
    u64::try_from(BACKOFF.bound(failures).as_millis()).unwrap_or(u64::MAX)
}
