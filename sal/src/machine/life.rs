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
//! the first start of a shim; later it is an end like any other.

use std::time::Duration;

use rhizome_model::Backoff;
use rhizome_model::kind::Restart;
use serde::{Deserialize, Serialize};

/// Between an end and the next start. There is no jitter: machines do not share what they wait for.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
/// Who ran this long has recovered: the next end counts as the first.
const RECOVERED_MS: u64 = 10 * 60 * 1000;
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
    pub fn new(run: String, restarts: u32) -> Self {
        let life = Life::Starting { stop: None };
        Self { run, life, restarts, failures: 0, exit_code: None, started_at: None }
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
        if rests {
            return Life::Exited { reason };
        }
        self.failures = self.failures.saturating_add(1);
        let pause = u64::try_from(BACKOFF.bound(self.failures).as_millis()).unwrap_or(u64::MAX);
        Life::BackingOff { until: now.saturating_add(pause), reason }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        Record::new("r".into(), 0)
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
