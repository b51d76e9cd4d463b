//! Named actions of a machine.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::kind::MachineSpec;
use rhizome_model::{Action, Code, ResourceId};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::life::{Life, Stop};
use super::place::Place;
use super::{Driver, Runtime, log, unique};
use crate::error::{Result, SalError};
use crate::workload::{self, Sink};
use crate::{files, net};

/// Of what a machine printed, `wait` answers this much.
const WAIT_OUTPUT: usize = 64 << 10;
/// The variable by which the processes of one command are known.
const EXEC_MARK: &str = "RHIZOME_EXEC";
/// A command that is cancelled is gone when this many looks in a row find nothing of it.
const QUIET_LOOKS: u32 = 5;
const LOOK: Duration = Duration::from_millis(10);
const EXEC_PATIENCE: Duration = Duration::from_secs(5);
/// How soon an end, or a new line of a log, is noticed: at first, and when nothing happens.
const SOON: Duration = Duration::from_millis(2);
const LATE: Duration = Duration::from_millis(100);
/// A machine that is being started or stopped by somebody else is without a shim for a moment; after
/// this it counts as lost.
const LOST_PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn act(
    driver: &Driver,
    id: &ResourceId,
    action: &Action,
    by: &str,
    sink: Sink<'_>,
    cancel: &CancellationToken,
) -> Result<Value> {
    let place = Place::new(&driver.node, id);
    let spec = place.applied().filter(|_| driver.node.store.has(&place.root)).ok_or_else(|| {
        SalError::new(Code::NotFound, format!("there is no machine {id} on this node"))
    })?;
    match action {
        Action::Start => start(driver, id, &place, &spec),
        Action::Stop => stop(driver, id, &place),
        Action::Restart => {
            if !place.is_restarted_by(by) {
                stop(driver, id, &place)?;
                place.note_restart(by)?;
            }
            start(driver, id, &place, &spec)
        }
        Action::Exec { command } => exec(driver, id, &place, command, sink, cancel),
        Action::Wait => wait(id, &place, cancel),
        Action::Logs { tail, follow } => logs(&place, *tail, *follow, sink, cancel),
        Action::Snapshot { .. }
        | Action::Restore { .. }
        | Action::DropSnapshot { .. }
        | Action::Resize { .. } => Err(workload::no_such_action(id, action)),
    }
}

fn start(driver: &Driver, id: &ResourceId, place: &Place, spec: &MachineSpec) -> Result<Value> {
    // A shim that has written an end is about to go.
    driver.is_settled(id, place)?;
    if place.shim().is_none() {
        driver.check(id, spec)?;
        let runtime = Runtime::find(&driver.node)?;
        let past = place.record().map(|r| r.past_by_request()).unwrap_or_default();
        driver.halt(id, place, Stop::Interrupt)?;
        net::attach(&driver.node.config, &driver.node.mark, id)?;
        driver.start(id, place, spec, &runtime, past)?;
    }
    status(driver, id, place)
}

pub(super) fn stop(driver: &Driver, id: &ResourceId, place: &Place) -> Result<Value> {
    driver.halt(id, place, Stop::Request)?;
    // Without a shim nobody else says that it is to stay so: after a crash, or had it ended itself.
    if let Some(mut record) = place.record()
        && record.life != Life::Stopped
    {
        record.life = Life::Stopped;
        files::replace_json(&super::place::record_file(&place.dir), &record, true)?;
    }
    status(driver, id, place)
}

fn status(driver: &Driver, id: &ResourceId, place: &Place) -> Result<Value> {
    let status = driver.status(id, place)?;
    serde_json::to_value(status)
        .map_err(|e| SalError::new(Code::Internal, format!("write a status as JSON: {e}")))
}

/// Runs a command inside. When it is cancelled, everything that the command started ends too.
fn exec(
    driver: &Driver,
    id: &ResourceId,
    place: &Place,
    command: &[String],
    sink: Sink<'_>,
    cancel: &CancellationToken,
) -> Result<Value> {
    if command.is_empty() {
        return Err(SalError::new(Code::BadRequest, "exec needs a command"));
    }
    let runs = place.record().is_some_and(|r| matches!(r.life, Life::Running { .. }));
    if !runs || place.shim().is_none() {
        return Err(SalError::new(
            Code::Conflict,
            format!("machine {id} is not running: start it first"),
        ));
    }
    let mark = format!("{EXEC_MARK}={}", unique());
    let tool = Runtime::find(&driver.node)?.exec(place, &mark, command).cancel(cancel);
    let ended = tool.stream(sink);
    if ended.is_err() {
        end_marked(driver, id, &mark);
    }
    let status = ended?.status;
    let exit_code = status.code().unwrap_or_else(|| {
        128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0)
    });
    Ok(json!({ "exit_code": exit_code }))
}

/// Ends what a command has started: all with its mark in their environment, and the sessions that
/// they lead. The runtime that was killed may just have let go of the command, so one look that
/// finds nothing is not enough.
fn end_marked(driver: &Driver, id: &ResourceId, mark: &str) {
    let deadline = Instant::now() + EXEC_PATIENCE;
    let mut quiet = 0;
    while quiet < QUIET_LOOKS && Instant::now() < deadline {
        let inside = driver.node.cgroups.processes(id);
        let marked: Vec<_> = inside.iter().copied().filter(|pid| has_mark(*pid, mark)).collect();
        quiet = if marked.is_empty() { quiet + 1 } else { 0 };
        for pid in inside {
            if marked.contains(&pid) || session(pid).is_some_and(|leader| marked.contains(&leader))
            {
                // It may have ended just now.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn has_mark(pid: i32, mark: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|b| *b == 0).any(|entry| entry == mark.as_bytes())
}

fn session(pid: i32) -> Option<i32> {
    nix::unistd::getsid(Some(Pid::from_raw(pid))).ok().map(Pid::as_raw)
}

/// Waits for the end of a machine that ends.
fn wait(id: &ResourceId, place: &Place, cancel: &CancellationToken) -> Result<Value> {
    let mut pause = SOON;
    let mut lost_at = None;
    loop {
        let lives = place.shim().is_some();
        match place.record() {
            Some(record) if matches!(record.life, Life::Exited { .. } | Life::Stopped) => {
                let output = log::last_output(&place.log, WAIT_OUTPUT)?;
                return Ok(json!({
                    "exit_code": record.exit_code,
                    "output": String::from_utf8_lossy(&output),
                }));
            }
            _ if lives => lost_at = None,
            _ => {
                // It may be starting, or just be put down.
                let since: &Instant = lost_at.get_or_insert_with(Instant::now);
                if since.elapsed() > LOST_PATIENCE {
                    return Err(SalError::new(
                        Code::Unavailable,
                        format!(
                            "machine {id} is not watched by anything: ensure it, and wait again"
                        ),
                    ));
                }
            }
        }
        sleep(&mut pause, cancel, "waiting for a machine")?;
    }
}

fn logs(
    place: &Place,
    tail: usize,
    follow: bool,
    sink: Sink<'_>,
    cancel: &CancellationToken,
) -> Result<Value> {
    let (chunks, mut reader) = log::Reader::tail(&place.log, tail)?;
    let mut wanted = chunks.into_iter().all(&mut *sink);
    let mut pause = SOON;
    while follow && wanted {
        match reader.more()? {
            Some(chunks) if !chunks.is_empty() => {
                wanted = chunks.into_iter().all(&mut *sink);
                pause = SOON;
            }
            // The machine is gone.
            None if !place.dir.exists() => break,
            Some(_) | None => {}
        }
        sleep(&mut pause, cancel, "following a log")?;
    }
    Ok(json!({}))
}

fn sleep(pause: &mut Duration, cancel: &CancellationToken, what: &str) -> Result<()> {
    if cancel.is_cancelled() {
        return Err(SalError::new(Code::Cancelled, format!("{what} was cancelled")));
    }
    std::thread::sleep(*pause);
    *pause = (*pause * 3 / 2).min(LATE);
    Ok(())
}
