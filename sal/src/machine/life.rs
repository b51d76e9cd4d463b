//! The life of a machine's program, as its shim sees it.
//!
//! ```text
//!              Started            Ended, it may rest
//!   Starting ──────────▶ Running ───────────────────▶ Exited
//!    ▲   │ │ NotStarted   │   │ Ended, not to rest
//!    │   │ └──▶ Failed    │   └──────▶ BackingOff ──Stop──▶ Stopped | Interrupted
//!    │   │ Stop           │ Stop          │                      ▲
//!    │   └─(on Started)─▶ Stopping ───────│──────Ended───────────┘
//!    └──────────────────Due───────────────┘
//! ```
//!
//! Exited, Stopped, Interrupted and Failed are ends: the shim goes. `NotStarted` is final only for
//! the first start of a machine; later it is an end like any other.
//!
//! A shim that is killed leaves its record behind; the next one takes over from it what was past
//! ([`Record::past`]): so a pause is waited out, and counted on, whoever dies.

use std::time::Duration;

use rhizome_model::Backoff;
use rhizome_model::kind::Restart;
use serde::{Deserialize, Serialize};

/// Between an end and the next start. There is no jitter: machines do not share what they wait for.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
/// Who ran this long has recovered: the next end counts as the first.
const RECOVERED_MS: u64 = 10 * 60 * 1000;
/// Ends that are remembered until somebody has told of them.
const ENDS: usize = 16;
/// From SIGTERM to SIGKILL.
pub(super) const GRACE_MS: u64 = 10_000;
/// As shells do when a program cannot be started.
const CANNOT_START: i32 = 127;

/// Times are milliseconds on the shim's own clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "life", rename_all = "snake_case")]
pub(super) enum Life {
    Starting { stop: Option<Stop> },
    Running { pid: i32, since: u64 },
    Stopping { pid: i32, kill_at: u64, stop: Stop },
    BackingOff { until: u64, reason: String },
    Exited { reason: String },
    Stopped,
    Interrupted,
    Failed { reason: String },
}

/// Why it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stop {
    /// Somebody asked for it; it stays so.
    Request,
    /// The node goes down, or the machine goes away; it starts again when it is ensured again.
    Interrupt,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Started {
        pid: i32,
    },
    NotStarted {
        reason: String,
    },
    Ended {
        exit_code: i32,
        reason: String,
    },
    Stop(Stop),
    /// The pause is over.
    Due,
}

/// What is known of a machine's program; written after each step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
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
pub(super) struct End {
    /// From 1, over all shims of a machine.
    pub number: u64,
    /// Unix milliseconds.
    pub at: i64,
    pub reason: String,
    /// Until it is started again; none when it rests.
    pub pause_ms: Option<u64>,
}

/// What a shim takes over from the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Past {
    pub restarts: u32,
    pub failures: u32,
    pub exit_code: Option<i32>,
    pub started_at: Option<i64>,
    pub ends: Vec<End>,
    /// Unix milliseconds before which it does not start, and why.
    pub pause: Option<(i64, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a machine that is {life:?}")]
pub(super) struct Illegal {
    life: Life,
    event: Event,
}

impl Life {
    pub fn is_end(&self) -> bool {
        match self {
            Self::Starting { .. }
            | Self::Running { .. }
            | Self::Stopping { .. }
            | Self::BackingOff { .. } => false,
            Self::Exited { .. } | Self::Stopped | Self::Interrupted | Self::Failed { .. } => true,
        }
    }

    /// The process that is alive.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::Running { pid, .. } | Self::Stopping { pid, .. } => Some(*pid),
            Self::Starting { .. }
            | Self::BackingOff { .. }
            | Self::Exited { .. }
            | Self::Stopped
            | Self::Interrupted
            | Self::Failed { .. } => None,
        }
    }

    /// When there is something to do without anything happening.
    pub fn due(&self) -> Option<u64> {
        match self {
            Self::BackingOff { until, .. } => Some(*until),
            Self::Stopping { kill_at, .. } => Some(*kill_at),
            Self::Starting { .. }
            | Self::Running { .. }
            | Self::Exited { .. }
            | Self::Stopped
            | Self::Interrupted
            | Self::Failed { .. } => None,
        }
    }
}

impl Stop {
    fn end(self) -> Life {
        match self {
            Self::Request => Life::Stopped,
            Self::Interrupt => Life::Interrupted,
        }
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

    /// The one place that says what leads where.
    pub fn step(&mut self, event: Event, policy: Restart, now: u64) -> Result<(), Illegal> {
        let first = self.started_at.is_none();
        let next = match (&self.life, event) {
            (Life::Starting { stop: None }, Event::Started { pid }) => {
                Life::Running { pid, since: now }
            }
            (Life::Starting { stop: Some(stop) }, Event::Started { pid }) => {
                Life::Stopping { pid, kill_at: now + GRACE_MS, stop: *stop }
            }
            (Life::Starting { stop: Some(stop) }, Event::NotStarted { .. }) => stop.end(),
            (Life::Starting { stop: None }, Event::NotStarted { reason }) if first => {
                Life::Failed { reason }
            }
            (Life::Starting { stop: None }, Event::NotStarted { reason }) => {
                self.ended(CANNOT_START, reason, policy, now)
            }
            (Life::Starting { .. }, Event::Stop(stop)) => Life::Starting { stop: Some(stop) },
            (Life::Running { since, .. }, Event::Ended { exit_code, reason }) => {
                if now.saturating_sub(*since) >= RECOVERED_MS {
                    self.failures = 0;
                }
                self.ended(exit_code, reason, policy, now)
            }
            (Life::Running { pid, .. }, Event::Stop(stop)) => {
                Life::Stopping { pid: *pid, kill_at: now + GRACE_MS, stop }
            }
            (Life::Stopping { stop, .. }, Event::Ended { exit_code, .. }) => {
                let end = stop.end();
                self.exit_code = Some(exit_code);
                end
            }
            // What is asked for last counts: the node goes down while a stop is under way.
            (Life::Stopping { pid, kill_at, .. }, Event::Stop(stop)) => {
                Life::Stopping { pid: *pid, kill_at: *kill_at, stop }
            }
            (Life::BackingOff { .. }, Event::Due) => {
                self.restarts = self.restarts.saturating_add(1);
                Life::Starting { stop: None }
            }
            (Life::BackingOff { .. }, Event::Stop(stop)) => stop.end(),
            (
                life @ (Life::Starting { .. } | Life::BackingOff { .. }),
                event @ (Event::Ended { .. }
                | Event::Due
                | Event::Started { .. }
                | Event::NotStarted { .. }),
            )
            | (
                life @ (Life::Running { .. } | Life::Stopping { .. }),
                event @ (Event::Started { .. } | Event::NotStarted { .. } | Event::Due),
            )
            | (
                life @ (Life::Exited { .. }
                | Life::Stopped
                | Life::Interrupted
                | Life::Failed { .. }),
                event,
            ) => return Err(Illegal { life: life.clone(), event }),
        };
        self.life = next;
        Ok(())
    }

    fn ended(&mut self, exit_code: i32, reason: String, policy: Restart, now: u64) -> Life {
        self.exit_code = Some(exit_code);
        let rests = match policy {
            Restart::Always => false,
            Restart::OnFailure => exit_code == 0,
            Restart::Never => true,
        };
        let pause = if rests {
            None
        } else {
            self.failures = self.failures.saturating_add(1);
            Some(pause_ms(self.failures))
        };
        // Who ends well and may rest has done what it should.
        if !(rests && exit_code == 0) {
            self.note_end(now, &reason, pause);
        }
        match pause {
            Some(pause) => Life::BackingOff { until: now.saturating_add(pause), reason },
            None => Life::Exited { reason },
        }
    }

    fn note_end(&mut self, now: u64, reason: &str, pause_ms: Option<u64>) {
        let number = self.ends.last().map_or(0, |end| end.number) + 1;
        if self.ends.len() == ENDS {
            self.ends.remove(0);
        }
        self.ends.push(End { number, at: self.at(now), reason: reason.to_owned(), pause_ms });
    }
}

fn pause_ms(failures: u32) -> u64 {
    u64::try_from(BACKOFF.bound(failures).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: i64 = 1_700_000_000_000;

    fn record() -> Record {
        Record::new("r".into(), Past::default(), EPOCH)
    }

    fn run(record: &mut Record, policy: Restart, now: u64) {
        record.step(Event::Started { pid: 7 }, policy, now).unwrap();
        record.started_at = Some(1);
    }

    fn end(exit_code: i32) -> Event {
        Event::Ended { exit_code, reason: "why".into() }
    }

    #[test]
    fn the_policy_decides_who_rests() {
        for (policy, code, rests) in [
            (Restart::Always, 0, false),
            (Restart::Always, 1, false),
            (Restart::OnFailure, 0, true),
            (Restart::OnFailure, 137, false),
            (Restart::Never, 1, true),
        ] {
            let mut record = record();
            run(&mut record, policy, 0);
            record.step(end(code), policy, 5).unwrap();
            assert_eq!(record.life.is_end(), rests, "{policy:?} {code}");
            assert_eq!(record.exit_code, Some(code));
        }
    }

    #[test]
    fn pauses_double_up_to_five_minutes_and_begin_anew_after_recovery() {
        let mut record = record();
        let (mut now, mut pauses) = (0, Vec::new());
        for _ in 0..11 {
            run(&mut record, Restart::Always, now);
            record.step(end(1), Restart::Always, now).unwrap();
            let until = record.life.due().unwrap();
            pauses.push((until - now) / 1000);
            now = until;
            record.step(Event::Due, Restart::Always, now).unwrap();
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(record.restarts, 11);
        run(&mut record, Restart::Always, now);
        record.step(end(1), Restart::Always, now + RECOVERED_MS).unwrap();
        assert_eq!(record.life.due(), Some(now + RECOVERED_MS + 1000));
    }

    #[test]
    fn only_the_first_start_can_fail_for_good() {
        let failed = || Event::NotStarted { reason: "no such file".into() };
        let mut record = record();
        record.step(failed(), Restart::Always, 0).unwrap();
        assert!(matches!(record.life, Life::Failed { .. }));

        let mut record = self::record();
        run(&mut record, Restart::Always, 0);
        record.step(end(1), Restart::Always, 0).unwrap();
        record.step(Event::Due, Restart::Always, 1000).unwrap();
        record.step(failed(), Restart::Always, 1000).unwrap();
        assert!(matches!(record.life, Life::BackingOff { .. }));
        assert_eq!(record.exit_code, Some(CANNOT_START));
    }

    /// A machine that has failed so often and is at the end's pause now.
    fn failing(times: u32) -> Record {
        let mut record = record();
        for _ in 0..times {
            run(&mut record, Restart::Always, 0);
            record.step(end(1), Restart::Always, 0).unwrap();
            if record.failures < times {
                record.step(Event::Due, Restart::Always, 0).unwrap();
            }
        }
        record
    }

    #[test]
    fn a_pause_is_waited_out_whoever_dies_meanwhile() {
        let record = failing(3);
        let (now, later) = (EPOCH + 1_000, EPOCH + 60_000);
        let mut next = Record::new("s".into(), record.past(now, 0), now);
        assert_eq!(next.life.due(), Some(3_000), "4 s less the one that has passed");
        assert_eq!((next.failures, next.restarts), (3, 2));
        next.step(Event::Due, Restart::Always, 3_000).unwrap();
        next.step(Event::Started { pid: 8 }, Restart::Always, 3_000).unwrap();
        next.step(end(1), Restart::Always, 3_000).unwrap();
        assert_eq!(next.life.due(), Some(3_000 + 8_000), "it goes on doubling");
        let numbers: Vec<_> = next.ends.iter().map(|e| e.number).collect();
        assert_eq!(numbers, [1, 2, 3, 4]);

        let next = Record::new("s".into(), record.past(later, 0), later);
        assert_eq!((next.life, next.restarts), (Life::Starting { stop: None }, 3));
        let back = EPOCH - 1_000_000;
        let next = Record::new("s".into(), record.past(back, 0), back);
        assert_eq!(next.life.due(), Some(4_000), "a clock that was set back");
    }

    #[test]
    fn a_loss_is_made_up_for_at_once_and_then_after_pauses() {
        let mut record = record();
        run(&mut record, Restart::Always, 0);
        record.started_at = Some(EPOCH);
        let past = record.past(EPOCH + 5, 0);
        assert_eq!((past.failures, past.restarts), (1, 1));
        let mut next = Record::new("s".into(), past, EPOCH + 5);
        assert_eq!(next.life, Life::Starting { stop: None });

        next.step(Event::Started { pid: 8 }, Restart::Always, 0).unwrap();
        next.started_at = Some(EPOCH + 5);
        let past = next.past(EPOCH + 10, 0);
        assert_eq!(Record::new("t".into(), past, EPOCH + 10).life.due(), Some(1_000));
        let recovered = next.past(EPOCH + 5 + RECOVERED_MS as i64, 0);
        assert_eq!(recovered.failures, 1, "as the first one");
        let rebooted = next.past(EPOCH + 10, EPOCH + 8);
        assert_eq!((rebooted.failures, rebooted.pause), (1, None), "the node's fault");
    }

    #[test]
    fn ends_that_nobody_asked_for_are_noted_and_bounded() {
        let mut record = record();
        run(&mut record, Restart::OnFailure, 0);
        record.step(end(0), Restart::OnFailure, 7).unwrap();
        assert_eq!(record.ends, [], "it did what it should");

        let mut record = self::record();
        run(&mut record, Restart::Never, 0);
        record.step(end(3), Restart::Never, 7).unwrap();
        assert_eq!(record.ends.last().map(|e| (e.at, e.pause_ms)), Some((EPOCH + 7, None)));

        let record = failing(40);
        assert_eq!(record.ends.len(), ENDS);
        assert_eq!(record.ends.last().map(|e| e.number), Some(40));
        assert_eq!(record.past_by_request().failures, 0);
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1..9i32).prop_map(|pid| Event::Started { pid }),
            Just(Event::NotStarted { reason: String::new() }),
            (0..3i32).prop_map(end),
            Just(Event::Stop(Stop::Request)),
            Just(Event::Stop(Stop::Interrupt)),
            Just(Event::Due),
        ]
    }

    proptest! {
        #[test]
        fn an_end_is_an_end_and_a_stop_always_leads_to_one(events in prop::collection::vec(event(), 0..40)) {
            let mut record = record();
            for (now, event) in events.into_iter().enumerate() {
                let before = record.clone();
                let done = record.step(event, Restart::Always, now as u64);
                prop_assert!(done.is_ok() || record == before);
                prop_assert!(!before.life.is_end() || done.is_err());
                if done.is_ok() && record.life.pid().is_some() {
                    record.started_at = Some(1);
                }
            }
            let stop = record.step(Event::Stop(Stop::Request), Restart::Always, 99);
            if stop.is_ok() {
                let _ = record.step(Event::Started { pid: 1 }, Restart::Always, 99);
                let _ = record.step(end(0), Restart::Always, 99);
            }
            prop_assert!(record.life.is_end());
        }
    }
}
