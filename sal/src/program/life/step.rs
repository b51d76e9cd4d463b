//! What leads where.

use rhizome_model::kind::Restart;

use super::record::{RECOVERED_MS, Record, pause_ms};
use super::{Event, Illegal, Life, Policy};

/// As shells do when a program cannot be started.
pub(super) const CANNOT_START: i32 = 127;

impl Record {
    /// The one place that says what leads where.
    pub fn step(&mut self, event: Event, policy: Policy, now: u64) -> Result<(), Illegal> {
        let first = self.started_at.is_none();
        let next = match (&self.life, event) {
            (Life::Starting { stop: None }, Event::Started { pid }) => {
                Life::Running { pid, since: now }
            }
            (Life::Starting { stop: Some(stop) }, Event::Started { pid }) => {
                Life::Stopping { pid, kill_at: now + policy.grace_ms, stop: *stop }
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
                Life::Stopping { pid: *pid, kill_at: now + policy.grace_ms, stop }
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

    fn ended(&mut self, exit_code: i32, reason: String, policy: Policy, now: u64) -> Life {
        self.exit_code = Some(exit_code);
        let rests = match policy.restart {
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
}
