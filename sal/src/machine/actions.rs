//! Named actions of a machine.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::kind::{Isolation, MachineSpec, MachineState};
use rhizome_model::{Action, Code, ResourceId};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Driver;
use crate::error::{Result, SalError};
use crate::oci::Runtime;
use crate::program::{Controls, Past, Place, Programs, unique};
use crate::workload::{self, Sink};

/// The variable by which the processes of one command are known.
const EXEC_MARK: &str = "RHIZOME_EXEC";
/// A command that is cancelled is gone when this many looks in a row find nothing of it.
const QUIET_LOOKS: u32 = 5;
const LOOK: Duration = Duration::from_millis(10);
const EXEC_PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn act(
    driver: &Driver,
    id: &ResourceId,
    action: &Action,
    by: &str,
    sink: Sink<'_>,
    cancel: &CancellationToken,
) -> Result<Value> {
    let place = driver.programs.place(id);
    let spec: Option<MachineSpec> = place.applied();
    let spec = spec.filter(|_| driver.node.store.has(&place.root)).ok_or_else(|| {
        SalError::new(Code::NotFound, format!("there is no machine {id} on this node"))
    })?;
    if matches!(action, Action::Start | Action::Restart) {
        driver.finish_admission(id, &place)?;
    }
    let machine = Made { driver, id, place, spec };
    match action {
        Action::Start => machine.start(),
        Action::Stop => machine.stop(),
        Action::Restart => machine.restart(by),
        Action::Exec { .. } if machine.spec.isolation == Isolation::Vm => Err(SalError::new(
            Code::BadRequest,
            format!(
                "{id} is a virtual machine, in which nothing of ours runs: give it ssh_keys and use ssh, or see its console with 'logs'"
            ),
        )),
        Action::Exec { command } => exec(driver, id, &machine.place, command, sink, cancel),
        Action::Wait => driver.programs.wait(id, cancel),
        Action::Logs { tail, follow } => driver.programs.logs(id, *tail, *follow, sink, cancel),
        Action::Snapshot { .. }
        | Action::Restore { .. }
        | Action::DropSnapshot { .. }
        | Action::Resize { .. } => Err(workload::no_such_action(id, action)),
    }
}

/// A machine that is there.
struct Made<'a> {
    driver: &'a Driver,
    id: &'a ResourceId,
    place: Place,
    spec: MachineSpec,
}

impl Controls for Made<'_> {
    fn programs(&self) -> &Programs {
        &self.driver.programs
    }

    fn id(&self) -> &ResourceId {
        self.id
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn begin(&self, past: Past) -> Result<()> {
        let Self { driver, id, place, spec } = self;
        driver.check(id, place, spec)?;
        driver.bring_up(id, place, spec, None, past)
    }

    fn status(&self) -> Result<Value> {
        workload::to_value(self.driver.status(self.id, &self.place)?)
    }
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
    if driver.programs.status(id).state != MachineState::Running {
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
        let inside = driver.programs.cgroups.processes(id);
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
