//! The shim's children: the starter, the program, who asks it to end, and what they leave behind.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdout};

use super::super::life::{Event, Life};
use super::super::orders::{Call, Start};
use super::super::place;
use super::Shim;
use crate::cgroup::fork_into;
use crate::error::{During, Result, shown};
use crate::{files, tool, vm};

/// What was started is the program within moments.
const BECOMES_MS: u64 = 5;
const ASK_AGAIN_MS: u64 = 2_000;

/// The process that starts the program, and until when it may.
pub(super) struct Starter {
    pub pid: Pid,
    pub until: u64,
    pub is_late: bool,
}

impl Shim {
    /// Has the starter start the program. Its end says whether that worked.
    pub(super) fn start(&mut self) {
        if let Err(error) = self.spawn() {
            self.happen(Event::NotStarted { reason: error.to_string() });
        }
    }

    fn spawn(&mut self) -> Result<()> {
        let program = &self.orders.program;
        program.clears.iter().try_for_each(|folder| files::remove_folder(folder))?;
        files::remove(&place::starter_log(&self.dir))?;
        files::remove(&place::pid_file(&self.dir))?;
        self.ooms = self.count_ooms();
        let (out_end, err_end) = self.output.pipes()?;
        let pid = match &program.start {
            Start::Command(call) => {
                let child = command(call).stdout(out_end).stderr(err_end).spawn();
                let child = child.during(format_args!("start {}", shown(&call.program)))?;
                pid_of(child.id())
            }
            Start::MachineVm { group } => start_vm(&self.dir, group, out_end, err_end)?,
        };
        let until = self.now() + self.orders.program.start_timeout_ms;
        self.starter = Some(Starter { pid, until, is_late: false });
        self.early.clear();
        Ok(())
    }

    pub(super) fn reap(&mut self) {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(_) | Err(_) => return,
            };
            if let Some(starter) = self.starter.take_if(|s| s.pid == pid) {
                self.started(code, starter.is_late);
            } else if self.record.life.pid() == Some(pid.as_raw()) {
                self.ended(code);
            } else if self.starter.is_some() {
                self.early.push((pid, code));
            }
        }
    }

    fn started(&mut self, code: i32, is_late: bool) {
        let text = fs::read_to_string(place::pid_file(&self.dir)).ok();
        let pid = text.and_then(|t| t.trim().parse().ok());
        let Some(pid) = pid.filter(|_| code == 0) else {
            let reason = match is_late {
                true => {
                    format!("it was not started within {} ms", self.orders.program.start_timeout_ms)
                }
                false => self.starter_words(),
            };
            end_children();
            self.output.drain();
            self.happen(Event::NotStarted { reason });
            return;
        };
        self.happen(Event::Started { pid });
        let early = self.early.iter().find(|(p, _)| p.as_raw() == pid).map(|(_, code)| *code);
        if let Some(code) = early {
            self.ended(code);
        }
    }

    fn ended(&mut self, exit_code: i32) {
        self.output.drain();
        if let Some((exit_code, reason)) = self.verdict() {
            self.happen(Event::Ended { exit_code, reason });
            return;
        }
        let reason = if self.count_ooms() > self.ooms {
            format!("it used more memory than it may and was killed (exit status {exit_code})")
        } else if exit_code > 128 {
            format!("it was ended by signal {} (exit status {exit_code})", exit_code - 128)
        } else {
            format!("it ended with exit status {exit_code}")
        };
        self.happen(Event::Ended { exit_code, reason });
    }

    fn verdict(&self) -> Option<(i32, String)> {
        let said = command(self.orders.program.verdict.as_ref()?).output().ok()?;
        let reason = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        // Who says nothing has nothing to say.
        said.status.code().filter(|_| !reason.is_empty()).map(|code| (code, reason))
    }

    /// The starter's last complaint.
    fn starter_words(&self) -> String {
        let text = fs::read_to_string(place::starter_log(&self.dir)).unwrap_or_default();
        let words = text.lines().rev().find_map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).ok()?;
            entry.get("msg")?.as_str().map(str::to_owned)
        });
        let name = match &self.orders.program.start {
            Start::Command(call) => call.program.file_name().unwrap_or_default().to_string_lossy(),
            Start::MachineVm { .. } => "machine-vm".into(),
        };
        words.unwrap_or_else(|| format!("{name} failed and did not say why"))
    }

    fn count_ooms(&self) -> u64 {
        let text = fs::read_to_string(&self.orders.oom).unwrap_or_default();
        let count = text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or(0)
    }

    /// Asks the program that is being stopped to end. While the starter has yet to become the
    /// program it would swallow the signal, so that has to wait.
    pub(super) fn ask(&mut self) {
        let Life::Stopping { pid, .. } = self.record.life else { return };
        let now = self.now();
        if now < self.asks_at {
            return;
        }
        let becoming = self.orders.program.becoming.as_deref();
        if becoming.is_some_and(|name| is_named(pid, name)) {
            self.asks_at = now + BECOMES_MS;
            return;
        }
        self.asks_at = match &self.orders.program.stop {
            // A guest that has just begun to boot hears nothing yet.
            Some(_) => now + ASK_AGAIN_MS,
            None => u64::MAX,
        };
        match &self.orders.program.stop {
            // What cannot be asked is killed when its time is over.
            Some(stop) => drop(command(stop).stdout(Stdio::null()).stderr(Stdio::null()).spawn()),
            None => terminate(pid),
        }
    }
}

/// Has a copy of ourselves bring up a virtual machine.
fn start_vm(dir: &Path, group: &Path, out_end: OwnedFd, err_end: OwnedFd) -> Result<Pid> {
    // SAFETY: there is no other thread that could hold a lock.
    match unsafe { fork_into(group) }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let ready = SigSet::empty()
                .thread_set_mask()
                .and_then(|()| dup2_stdout(&out_end))
                .and_then(|()| dup2_stderr(&err_end));
            std::process::exit(if ready.is_ok() { vm::start(dir) } else { 1 })
        }
    }
}

fn command(call: &Call) -> Command {
    let mut command = tool::command(&call.program);
    command.args(&call.args).stdin(Stdio::null());
    command
}

fn pid_of(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap_or(i32::MAX))
}

/// Ends all children, and theirs, which become ours: what a starter that failed has left.
fn end_children() {
    loop {
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|word| word.parse().ok()) {
            // It may have ended just now.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if children.is_empty() || waitpid(None, None).is_err() {
            return;
        }
    }
}

/// The first process of a container gets only signals that it has a handler for: who has none for
/// SIGTERM would wait out the whole grace, and gains nothing by it.
fn terminate(pid: i32) {
    let signal = if catches(pid, Signal::SIGTERM) { Signal::SIGTERM } else { Signal::SIGKILL };
    // It may have ended just now.
    let _ = kill(Pid::from_raw(pid), signal);
}

fn is_named(pid: i32, prefix: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(prefix))
}

fn catches(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    let mask = caught.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal as i32 - 1)) != 0
}
