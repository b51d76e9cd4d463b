//! Starting and ending programs.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::kind::Restart;
use rhizome_model::{Code, ResourceId};

use super::life::{Life, Past, Record, Stop};
use super::orders::{Orders, Program};
use super::place::{Place, record_file};
use super::{Programs, STEP, log, shim};
use crate::error::{Result, SalError};
use crate::files;
use crate::tool::{Begun, Tool};

/// What a shim needs besides what its program may take.
const START_SLACK: Duration = Duration::from_secs(30);
const STOP_SLACK: Duration = Duration::from_secs(5);
/// Of what a program printed before it failed to start, this much goes into the error.
const DETAIL_LINES: usize = 20;

/// How a shim comes into its control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It is born there, at once.
    Born,
    /// It is moved there while it waits. A kernel makes of several moves in a row only the first one
    /// slow, and a container runtime moves the container.
    Moved,
}

/// A shim that waits for its orders. Dropped, it goes without having done anything.
pub(crate) struct Waiting {
    run: String,
    shim: Begun,
}

impl Programs {
    /// Starts a shim that waits for its orders: called early, it is there when all else is.
    pub fn call_shim(&self, id: &ResourceId, entry: Entry) -> Result<Waiting> {
        self.cgroups.prepare_shim(id)?;
        let run = unique();
        let shim = Tool::new(&self.node.config.program)
            .arg("machine-shim")
            .arg(self.place(id).dir)
            .arg(&run)
            .arg(self.cgroups.of_shim(id))
            .args((entry == Entry::Moved).then_some(shim::MOVED))
            .stdin(shim::GO)
            .may_outlive_us()
            .begin()?;
        Ok(Waiting { run, shim })
    }

    /// Has a shim start a program and waits until it runs; a start that fails is `start_failed`.
    pub fn start(
        &self,
        id: &ResourceId,
        shim: Waiting,
        program: &Program,
        past: Past,
    ) -> Result<()> {
        let Waiting { run, shim } = shim;
        let place = self.place(id);
        files::make_folder(&place.dir)?;
        place.write_orders(&Orders {
            run: run.clone(),
            program: program.clone(),
            log: place.log.clone(),
            oom: self.cgroups.oom_file(id),
            past,
            stop: None,
        })?;
        shim.run()?;
        let record = self.await_start(id, &place, &run, start_patience(program))?;
        let Life::Failed { reason } = record.life else { return Ok(()) };
        let printed = log::last_lines(&place.log, DETAIL_LINES)?;
        let message = format!("{} {id} cannot {}: {reason}", self.kind, program.what);
        Err(SalError::new(Code::StartFailed, message).with_detail(printed))
    }

    fn await_start(
        &self,
        id: &ResourceId,
        place: &Place,
        run: &str,
        patience: Duration,
    ) -> Result<Record> {
        let deadline = Instant::now() + patience;
        loop {
            let ours = || place.record().filter(|r| r.run == run);
            if let Some(record) = ours().filter(|r| !matches!(r.life, Life::Starting { .. })) {
                return Ok(record);
            }
            if Instant::now() > deadline {
                let message = format!("{} {id} did not start within {patience:?}", self.kind);
                return Err(SalError::new(Code::TimedOut, message));
            }
            std::thread::sleep(STEP);
        }
    }

    /// Whether a program is as it should stay: a shim sees to it, or it ended for good. A start that
    /// is under way is waited for; a stop that somebody has left half done is not settled.
    pub fn is_settled(&self, id: &ResourceId) -> Result<bool> {
        let place = self.place(id);
        let begin = Instant::now();
        loop {
            // A shim that has not written yet is starting, whatever the one before it has written.
            let orders = place.orders();
            let stops = orders.as_ref().is_some_and(|o| o.stop.is_some());
            let patience = orders.as_ref().map_or(START_SLACK, |o| start_patience(&o.program));
            let run = orders.map(|o| o.run);
            let record = place.record().filter(|r| Some(&r.run) == run.as_ref());
            let watches = record
                .is_some_and(|r| !r.life.is_end() && !matches!(r.life, Life::Starting { .. }));
            if place.shim().is_none() {
                // Looked at again: it may have ended between our two looks.
                let rests = place
                    .record()
                    .is_some_and(|r| matches!(r.life, Life::Exited { .. } | Life::Stopped));
                return Ok(rests && !self.cgroups.is_populated(id));
            }
            if stops || watches {
                return Ok(!stops);
            }
            if begin.elapsed() > patience {
                return Ok(false);
            }
            std::thread::sleep(STEP);
        }
    }

    /// Ends the shim, the program and every process of it, and takes away what it leaves.
    pub fn halt(&self, id: &ResourceId, stop: Stop) -> Result<()> {
        let place = self.place(id);
        let orders = place.orders();
        if let Some(shim) = place.shim() {
            let grace = orders.as_ref().map_or(0, |o| o.program.grace_ms);
            if let Some(orders) = orders.clone() {
                place.write_orders(&Orders { stop: Some(stop), ..orders })?;
            }
            let signal = match stop {
                Stop::Request => Signal::SIGTERM,
                Stop::Interrupt => Signal::SIGINT,
            };
            // It may have ended just now.
            let _ = kill(Pid::from_raw(shim), signal);
            let deadline = Instant::now() + Duration::from_millis(grace) + STOP_SLACK;
            while place.shim() == Some(shim) && Instant::now() < deadline {
                std::thread::sleep(STEP);
            }
        }
        self.cgroups.clear(id)?;
        let clears = orders.map(|o| o.program.clears).unwrap_or_default();
        clears.iter().try_for_each(|folder| files::remove_folder(folder))
    }

    /// Ends a program on request: it stays so.
    pub fn stop(&self, id: &ResourceId) -> Result<()> {
        let place = self.place(id);
        self.halt(id, Stop::Request)?;
        // Without a shim nobody else says that it is to stay so: after a crash, or had it ended itself.
        match place.record() {
            Some(mut record) if record.life != Life::Stopped => {
                record.life = Life::Stopped;
                files::replace_json(&record_file(&place.dir), &record, true)
            }
            _ => Ok(()),
        }
    }

    /// A stop that was asked for and broke off with whoever made it: what was asked for counts.
    pub fn finish_stop(&self, id: &ResourceId) -> Result<()> {
        let place = self.place(id);
        let asked = place.orders().is_some_and(|o| o.stop == Some(Stop::Request));
        let stopped = place.record().is_some_and(|r| r.life == Life::Stopped);
        if asked && !stopped { self.stop(id) } else { Ok(()) }
    }

    /// Has the living shim go by another restart policy.
    pub fn set_restart(&self, id: &ResourceId, restart: Restart) -> Result<()> {
        let place = self.place(id);
        let Some(mut orders) = place.orders() else { return Ok(()) };
        orders.program.restart = restart;
        place.write_orders(&orders)?;
        if let Some(shim) = place.shim() {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(shim), Signal::SIGHUP);
        }
        Ok(())
    }
}

fn start_patience(program: &Program) -> Duration {
    Duration::from_millis(program.start_timeout_ms) + START_SLACK
}

/// A name that no other run has.
pub(crate) fn unique() -> String {
    let now = jiff::Timestamp::now().as_nanosecond();
    format!("{now:x}-{:x}", std::process::id())
}
