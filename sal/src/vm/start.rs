//! The hidden subcommand `machine-vm`: brings a virtual machine up, presses its power button, or says why
//! its guest ended.
//!
//! ```text
//!   shim ──▶ machine-vm start DIR ──▶ hypervisor        spawn ─ answers ─ create ─ add-net
//!     ▲            │ exits 0: DIR/pid                    ─ heard ─ boot ─ ready
//!     └────────────┼──────────────────── reparented to the shim
//!                  └ exits 1: all of it killed and gone, DIR/runtime.log says why
//! ```
//!
//! It is to a virtual machine what an OCI runtime is to a container: it starts it and goes.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ExitCode, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use rhizome_model::Code;
use serde_json::json;

use super::config::{Ready, VmConfig};
use super::fault::{Answer, Fault};
use super::hypervisor::Hypervisor;
use super::ready::Echo;
use super::{BOOTED, CALL, ERROR, EVENTS, Ended, PID, Vm, clear, ended};
use crate::cgroup::put;
use crate::error::{During, Result, SalError, shown};
use crate::{files, tool};

/// A hypervisor answers within this after it was started, also on a node under load.
const ANSWERS: Duration = Duration::from_secs(20);
/// Creating a machine opens its disks, booting it gives it its memory.
const MAKES: Duration = Duration::from_secs(20);
/// Who reads what the guest prints is there within this, or does without its beginning.
const HEARD: Duration = Duration::from_secs(2);
/// In what steps a hypervisor that was started is asked, and whether somebody reads what the guest prints.
const STEP: Duration = Duration::from_millis(1);

/// The body of the hidden subcommand `machine-vm start|power|ended DIR`; `args` is what follows its name.
/// It must be called before anything starts a thread.
pub fn machine_vm_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (verb, dir) = (args.next(), args.next());
    let (Some(verb), Some(dir)) = (verb.as_deref().and_then(|v| v.to_str()), dir) else {
        return complain(&"machine-vm takes start, power or ended, and a folder", 2);
    };
    let dir = Path::new(&dir);
    let done = match verb {
        "start" => bring_up(dir),
        "power" => Vm::open(dir).and_then(|vm| vm.power_button()),
        "ended" => return tell_end(dir),
        _ => return complain(&"machine-vm takes start, power or ended, and a folder", 2),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, 1),
    }
}

/// As `machine-vm start`, in a process that is there for it alone and has one thread; answers the exit
/// status.
pub(crate) fn start(dir: &Path) -> i32 {
    // Why it failed is in the folder.
    i32::from(bring_up(dir).is_err())
}

fn bring_up(dir: &Path) -> Result<()> {
    try_start(dir).inspect_err(|error| note(dir, error))
}

/// As exit statuses of programs are: whoever powers off has done what it should.
fn tell_end(dir: &Path) -> ExitCode {
    let Some(ended) = ended(dir) else { return ExitCode::SUCCESS };
    // Without a reader there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{ended}");
    match ended {
        Ended::PoweredOff => ExitCode::SUCCESS,
        Ended::Reset | Ended::Panicked => ExitCode::FAILURE,
    }
}

fn complain(message: &dyn fmt::Display, code: u8) -> ExitCode {
    // Whoever started us reads it; without a reader there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(code)
}

fn note_boot(dir: &Path, took: Duration) -> Result<()> {
    let at = jiff::Timestamp::now().as_millisecond();
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    files::replace_json(&dir.join(BOOTED), &json!({ "at": at, "took_us": took_us }), false)
}

/// As OCI runtimes write their logs.
fn note(dir: &Path, error: &SalError) {
    let line = json!({ "level": "error", "msg": error.to_string() });
    // The exit status says it, too.
    let _ = files::replace(&dir.join(ERROR), format!("{line}\n").as_bytes(), false);
}

fn try_start(dir: &Path) -> Result<()> {
    clear(dir)?;
    let vm = Vm::open(dir)?;
    vm.config.check()?;
    let mut running = Running::spawn(dir, &vm)?;
    let brought_up = running.bring_up(dir).and_then(|()| {
        let pid = running.child.id().to_string();
        files::replace(&dir.join(PID), pid.as_bytes(), false)
    });
    if brought_up.is_err() {
        running.kill();
        clear(dir)?;
    }
    brought_up
}

/// A hypervisor that is on its way.
struct Running<'a> {
    config: &'a VmConfig,
    hypervisor: &'a dyn Hypervisor,
    child: Child,
    /// Puts it into the control groups that it cannot be born in, those of v1, which takes a kernel 10 to
    /// 20 ms. Nothing waits for it but the word that the machine runs: until then its processors have no
    /// limit, and what it holds by then, which is no more than its guest's memory, is never counted there.
    joining: Option<JoinHandle<Result<()>>>,
    /// How long we waited for the hypervisor: until it was there, and for its answers.
    took: Duration,
}

impl<'a> Running<'a> {
    fn spawn(dir: &Path, vm: &'a Vm) -> Result<Self> {
        let signals = hold_signals()?;
        let config = &vm.config;
        let program = tool::find(config.program.as_os_str())?;
        let path = dir.join(EVENTS);
        let events = File::options().create(true).append(true).open(&path);
        let events = events.during(format_args!("open {}", shown(&path)))?;
        let number = events.as_raw_fd();
        let mut command = tool::command(&program);
        command.args(vm.hypervisor.prepare(number)?).current_dir(dir).stdin(Stdio::null());
        // One heap: with one per thread QEMU has held 90 MiB more than it used, and its group has an end.
        command.env("MALLOC_ARENA_MAX", "1");
        let prepare = move || {
            nix::unistd::setsid()?;
            // What we hold back is ours alone.
            SigSet::empty().thread_set_mask()?;
            // SAFETY: `events` is open until the program was started.
            let events = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
            fcntl(events, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(())
        };
        // SAFETY: all of it are plain system calls that allocate nothing.
        unsafe { command.pre_exec(prepare) };
        let child = command.spawn().during(format_args!("start {}", shown(&program)))?;
        end_with_us(signals, &child);
        let (groups, pid) = (config.groups.clone(), child.id());
        let joining = std::thread::spawn(move || groups.iter().try_for_each(|g| put(pid, g)));
        let joining = Some(joining);
        Ok(Self { config, hypervisor: &*vm.hypervisor, child, joining, took: Duration::ZERO })
    }

    fn bring_up(&mut self, dir: &Path) -> Result<()> {
        self.await_answer()?;
        self.ask("create", MAKES, |hypervisor, until| hypervisor.create(until))?;
        if let Some(net) = &self.config.net {
            self.ask("add-net", MAKES, |hypervisor, until| hypervisor.add_net(net, until))?;
        }
        self.await_reader()?;
        match self.ask("boot", MAKES, |hypervisor, until| hypervisor.boot(until)) {
            // A guest that is quick has ended before it was said that it runs.
            Err(_) if self.end() == Some(End::Status(0)) => {}
            answered => answered?,
        }
        note_boot(dir, self.took)?;
        self.await_groups()?;
        match &self.config.ready {
            Ready::Started => Ok(()),
            Ready::Address { address } => self.await_echo(dir, &Echo::new(*address)?),
        }
    }

    /// Its socket is there before anybody listens.
    fn await_answer(&mut self) -> Result<()> {
        let begun = Instant::now();
        let until = begun + ANSWERS;
        loop {
            let fault = match self.hypervisor.ping(until) {
                Ok(()) => {
                    self.took += begun.elapsed();
                    return Ok(());
                }
                Err(fault) => fault,
            };
            if let Some(end) = self.end() {
                return Err(self.failed(format!("ended before it answered: {end}")));
            }
            let is_coming = matches!(fault, Fault::Away(_) | Fault::Broken(_));
            if !is_coming || Instant::now() > until {
                return Err(fault.during(self.config.driver, "ping"));
            }
            std::thread::sleep(STEP);
        }
    }

    fn ask<T>(
        &mut self,
        what: &str,
        within: Duration,
        question: impl Fn(&dyn Hypervisor, Instant) -> Answer<T>,
    ) -> Result<T> {
        let asked = Instant::now();
        let answer = question(self.hypervisor, asked + within);
        self.took += asked.elapsed();
        answer.map_err(|fault| {
            // Its end is behind a broken connection by a moment.
            let is_gone = matches!(fault, Fault::Away(_) | Fault::Broken(_));
            let until = Instant::now() + if is_gone { CALL } else { Duration::ZERO };
            let end = loop {
                let end = self.end();
                if end.is_some() || Instant::now() >= until {
                    break end;
                }
                std::thread::sleep(STEP);
            };
            match end {
                Some(end) => self.failed(format!("ended during {what}: {end}")),
                None => self.failed(format!("{fault} ({what})")),
            }
        })
    }

    fn await_reader(&mut self) -> Result<()> {
        let until = Instant::now() + HEARD;
        while !self.ask("boot", CALL, |hypervisor, until| hypervisor.is_heard(until))?
            && Instant::now() < until
        {
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    /// No machine is said to run without its limits.
    fn await_groups(&mut self) -> Result<()> {
        let Some(joining) = self.joining.take() else { return Ok(()) };
        match joining.join() {
            // Who is gone cannot be put anywhere, and may be gone for a good reason.
            Ok(Err(_)) if self.end() == Some(End::Status(0)) => Ok(()),
            Ok(joined) => joined,
            Err(_) => Err(SalError::new(Code::Internal, "joining control groups broke off")),
        }
    }

    fn await_echo(&mut self, dir: &Path, echo: &Echo) -> Result<()> {
        let within = Duration::from_millis(self.config.ready_ms);
        let until = Instant::now() + within;
        while !echo.answers() {
            if let Some(end) = self.end() {
                let why = ended(dir).map_or(end.to_string(), |ended| ended.to_string());
                let message = format!("the machine ended before its address answered: {why}");
                return Err(SalError::new(Code::StartFailed, message));
            }
            if Instant::now() > until {
                let message = format!(
                    "the guest's address did not answer within {within:?}: does it boot, and does it read its NoCloud disk?"
                );
                return Err(SalError::new(Code::StartFailed, message));
            }
        }
        Ok(())
    }

    fn failed(&self, what: String) -> SalError {
        SalError::new(Code::StartFailed, format!("{} {what}", self.config.driver))
    }

    /// How it ended, if it did. It is left for the shim to take note of.
    fn end(&self) -> Option<End> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(self.pid()), flags) {
            Ok(WaitStatus::Exited(_, code)) => Some(End::Status(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(End::Signal(signal as i32)),
            Ok(_) | Err(_) => None,
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn kill(&mut self) -> Option<ExitStatus> {
        // It may have ended by itself just now; it is waited for in any case.
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Status(i32),
    Signal(i32),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// The signals that end us, held back until somebody waits for them.
fn hold_signals() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().during("hold signals back")?;
    Ok(signals)
}

/// Who is told to end while a machine comes up takes it along.
fn end_with_us(signals: SigSet, child: &Child) {
    let pid = Pid::from_raw(child.id().cast_signed());
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            let _ = kill(pid, Signal::SIGKILL);
            std::process::exit(1);
        }
    });
}
