//! The shim: one small process per machine that is its parent on the node.
//!
//! ```text
//!   ensure ──starts──▶ shim ──runs──▶ runc run --detach ──▶ container (reparented to the shim)
//!                       ▲  ◀──────── stdout, stderr ──────────┘
//!                SIGTERM, SIGINT, SIGHUP          ──▶ log files, state.json
//! ```
//!
//! It is in a session of its own and outlives whoever started it. It copies what the machine prints
//! to the log, writes what happens to `state.json`, starts the program again as the restart policy
//! says, and goes when there is nothing left to watch. SIGTERM stops the machine on request, SIGINT
//! because the node goes down or the machine goes away, SIGHUP makes it read its orders again.
//!
//! It is synchronous and has one thread: it is there once per machine.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2, setsid};
use rhizome_model::Code;

use super::life::{Event, Life, Record, Stop};
use super::log::{self, Stream};
use super::place::{self, Orders};
use crate::error::{During, Result, SalError, shown};
use crate::{files, tool};

/// How long a shim waits for the one before it to be gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// The runtime starts a container within this.
const START_TIMEOUT_MS: u64 = 60_000;
/// An unfinished line is written to the log when its rest does not come within this.
const LINE_PATIENCE_MS: u64 = 250;
/// What a program that has ended left in its pipes comes at once.
const DRAIN_STEP_MS: u8 = 50;
/// A container that was started is the program's within moments.
const ASK_STEP_MS: u64 = 5;

/// The body of the hidden subcommand `machine-shim DIR RUN`; `args` is what follows its name.
/// It must be called before anything starts a thread.
pub fn machine_shim_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (Some(dir), Some(run)) = (args.next(), args.next()) else {
        return complain("machine-shim takes a folder and the name of a run", 2);
    };
    match begin(Path::new(&dir), &run.to_string_lossy()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string(), 1),
    }
}

fn complain(message: &str, code: u8) -> ExitCode {
    // Whoever started us reads it; without a reader there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(code)
}

/// Joins the machine's group and goes to the background.
fn begin(dir: &Path, run: &str) -> Result<()> {
    let orders = read_orders(dir)?;
    let procs = orders.cgroup.join("cgroup.procs");
    fs::write(&procs, std::process::id().to_string())
        .during(format_args!("join the control group {}", shown(&procs)))?;
    // SAFETY: there is no other thread that could hold a lock.
    match unsafe { fork() }.during("go to the background")? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => {
            detach()?;
            supervise(dir, run)
        }
    }
}

fn detach() -> Result<()> {
    setsid().during("begin a session")?;
    std::env::set_current_dir("/").during("leave the folder")?;
    let null = File::options().read(true).write(true).open("/dev/null").during("open /dev/null")?;
    nix::unistd::dup2_stdin(&null)
        .and_then(|()| nix::unistd::dup2_stdout(&null))
        .and_then(|()| nix::unistd::dup2_stderr(&null))
        .during("close the standard streams")
}

fn read_orders(dir: &Path) -> Result<Orders> {
    let path = place::orders_file(dir);
    files::read_json(&path).ok_or_else(|| {
        SalError::new(Code::Internal, format!("{} holds no orders for a shim", shown(&path)))
    })
}

fn supervise(dir: &Path, run: &str) -> Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    let _lock = loop {
        match place::take_shim_lock(dir)? {
            Some(lock) => break lock,
            None if Instant::now() > deadline => return Ok(()),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let orders = read_orders(dir)?;
    if orders.run != run {
        // Somebody has begun anew meanwhile.
        return Ok(());
    }
    let mut shim = Shim::new(dir, orders)?;
    if matches!(shim.record.life, Life::Starting { .. }) {
        shim.start();
    }
    shim.save();
    while !shim.record.life.is_end() {
        shim.turn()?;
    }
    Ok(())
}

struct Shim {
    dir: PathBuf,
    orders: Orders,
    record: Record,
    begin: Instant,
    signals: SignalFd,
    log: log::Writer,
    buffer: Vec<u8>,
    stdout: Option<File>,
    stderr: Option<File>,
    /// The runtime while it starts the container, and until when it may.
    starter: Option<(Pid, u64)>,
    /// Children that ended before the runtime said which of them is the container.
    early: Vec<(Pid, i32)>,
    ooms: u64,
    /// Whether the program that is being stopped was asked to end.
    asked: bool,
}

impl Shim {
    fn new(dir: &Path, orders: Orders) -> Result<Self> {
        nix::sys::prctl::set_child_subreaper(true).during("become the parent of orphans")?;
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().during("hold signals back")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            dir: dir.to_owned(),
            record: Record::new(
                orders.run.clone(),
                orders.past.clone(),
                jiff::Timestamp::now().as_millisecond(),
            ),
            begin: Instant::now(),
            signals: SignalFd::with_flags(&mask, flags).during("wait for signals")?,
            log: log::Writer::open(&orders.log, log::MAX_SIZE)?,
            orders,
            buffer: vec![0; 32 << 10],
            stdout: None,
            stderr: None,
            starter: None,
            early: Vec::new(),
            ooms: 0,
            asked: false,
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until something happens, and sees to it.
    fn turn(&mut self) -> Result<()> {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.stdout.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.stderr.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
        let happened = match nix::poll::poll(&mut fds, self.pause()) {
            Ok(n) => n > 0,
            Err(Errno::EINTR) => return Ok(()),
            Err(e) => return Err(e).during("wait for the machine"),
        };
        let ready: Vec<bool> = fds.iter().map(|f| f.any().unwrap_or(false)).collect();
        let has_stdout = self.stdout.is_some();
        if has_stdout && ready[1] {
            self.copy(Stream::Stdout);
        }
        if self.stderr.is_some() && ready[1 + usize::from(has_stdout)] {
            self.copy(Stream::Stderr);
        }
        if ready[0] {
            self.take_signals()?;
        }
        if !happened && self.log.is_waiting() {
            // A disk that is full must not end the machine.
            let _ = self.log.flush();
        }
        self.see_to_time();
        Ok(())
    }

    fn pause(&self) -> PollTimeout {
        let starter = self.starter.map(|(_, until)| until);
        let due = self.record.life.due().into_iter().chain(starter).min();
        let line = self.log.is_waiting().then_some(LINE_PATIENCE_MS);
        let asks = matches!(self.record.life, Life::Stopping { .. }) && !self.asked;
        let ask = asks.then_some(ASK_STEP_MS);
        let due = due.map(|d| d.saturating_sub(self.now()));
        let pause = due.into_iter().chain(line).chain(ask).min();
        match pause {
            None => PollTimeout::NONE,
            Some(ms) => PollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX))
                .unwrap_or(PollTimeout::MAX),
        }
    }

    fn take_signals(&mut self) -> Result<()> {
        while let Some(info) = self.signals.read_signal().during("read a signal")? {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => self.reap(),
                Ok(Signal::SIGTERM) => self.happen(Event::Stop(Stop::Request)),
                Ok(Signal::SIGINT) => self.happen(Event::Stop(Stop::Interrupt)),
                Ok(Signal::SIGHUP) => {
                    if let Ok(orders) = read_orders(&self.dir) {
                        self.orders = orders;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn see_to_time(&mut self) {
        let now = self.now();
        if let Some((pid, until)) = self.starter
            && now >= until
        {
            // Its end is reaped, and is a start that failed.
            let _ = kill(pid, Signal::SIGKILL);
            self.starter = Some((pid, u64::MAX));
        }
        self.ask();
        if self.record.life.due().is_none_or(|due| now < due) {
            return;
        }
        match &mut self.record.life {
            Life::Stopping { pid, kill_at, .. } => {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                *kill_at = u64::MAX;
            }
            Life::BackingOff { .. } => self.happen(Event::Due),
            Life::Starting { .. }
            | Life::Running { .. }
            | Life::Exited { .. }
            | Life::Stopped
            | Life::Interrupted
            | Life::Failed { .. } => {}
        }
    }

    /// Takes a step of the machine's life, and does what the new state asks for.
    fn happen(&mut self, event: Event) {
        let was = self.record.life.clone();
        // What cannot happen now, such as a stop of what has ended, changes nothing.
        if self.record.step(event, self.orders.restart, self.now()).is_err() {
            return;
        }
        match &self.record.life {
            Life::Starting { stop: None } => self.start(),
            Life::Running { .. } => {
                self.record.started_at = Some(jiff::Timestamp::now().as_millisecond());
            }
            Life::Stopping { .. } if !matches!(was, Life::Stopping { .. }) => {
                self.asked = false;
                self.ask();
            }
            Life::Starting { .. }
            | Life::Stopping { .. }
            | Life::BackingOff { .. }
            | Life::Exited { .. }
            | Life::Stopped
            | Life::Interrupted
            | Life::Failed { .. } => {}
        }
        self.save();
    }

    /// Asks the program that is being stopped to end. While the runtime has yet to become the
    /// program it would swallow the signal, so that has to wait.
    fn ask(&mut self) {
        if let Life::Stopping { pid, .. } = self.record.life
            && !self.asked
            && !is_runtime(pid)
        {
            terminate(pid);
            self.asked = true;
        }
    }

    fn save(&self) {
        // An end must survive a power cut: what ran once does not run again. A disk that is full
        // must not end the machine.
        let durable = self.record.life.is_end();
        let _ = files::replace_json(&place::record_file(&self.dir), &self.record, durable);
    }

    /// Has the runtime start the container. Its end says whether that worked.
    fn start(&mut self) {
        if let Err(error) = self.spawn() {
            self.happen(Event::NotStarted { reason: error.to_string() });
        }
    }

    fn spawn(&mut self) -> Result<()> {
        // What an earlier container of the name has left; its processes are gone.
        files::remove_folder(&self.orders.runtime_root.join(&self.orders.container))?;
        files::remove(&self.runtime_log())?;
        files::remove(&self.pid_file())?;
        self.ooms = self.count_ooms();
        let (out, out_end) = pipe()?;
        let (err, err_end) = pipe()?;
        let mut command = tool::command(&self.orders.runtime);
        command.arg("--root").arg(&self.orders.runtime_root);
        command.arg("--log").arg(self.runtime_log()).args(["--log-format", "json"]);
        command.args(["run", "--detach", "--pid-file"]).arg(self.pid_file());
        command.arg("--bundle").arg(&self.dir).arg(&self.orders.container);
        command.stdin(Stdio::null()).stdout(out_end).stderr(err_end);
        let child =
            command.spawn().during(format_args!("start {}", shown(&self.orders.runtime)))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
        self.starter = Some((pid, self.now() + START_TIMEOUT_MS));
        self.early.clear();
        (self.stdout, self.stderr) = (Some(out), Some(err));
        Ok(())
    }

    fn runtime_log(&self) -> PathBuf {
        self.dir.join("runtime.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }

    fn reap(&mut self) {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(_) | Err(_) => return,
            };
            if self.starter.is_some_and(|(starter, _)| starter == pid) {
                self.starter = None;
                self.started(code);
            } else if self.record.life.pid() == Some(pid.as_raw()) {
                self.ended(code);
            } else if self.starter.is_some() {
                self.early.push((pid, code));
            }
        }
    }

    fn started(&mut self, code: i32) {
        let pid = fs::read_to_string(self.pid_file()).ok().and_then(|t| t.trim().parse().ok());
        let Some(pid) = pid.filter(|_| code == 0) else {
            self.drain();
            let reason = self.runtime_words();
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
        self.drain();
        let reason = if self.count_ooms() > self.ooms {
            format!("it used more memory than it may and was killed (exit status {exit_code})")
        } else if exit_code > 128 {
            format!("it was ended by signal {} (exit status {exit_code})", exit_code - 128)
        } else {
            format!("it ended with exit status {exit_code}")
        };
        self.happen(Event::Ended { exit_code, reason });
    }

    /// The runtime's last complaint.
    fn runtime_words(&self) -> String {
        let text = fs::read_to_string(self.runtime_log()).unwrap_or_default();
        let words = text.lines().rev().find_map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).ok()?;
            entry.get("msg")?.as_str().map(str::to_owned)
        });
        words.unwrap_or_else(|| "the container runtime failed and did not say why".into())
    }

    fn count_ooms(&self) -> u64 {
        let text = fs::read_to_string(&self.orders.oom).unwrap_or_default();
        let count = text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or(0)
    }

    fn copy(&mut self, stream: Stream) {
        let pipe = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(reader) = pipe else { return };
        match reader.read(&mut self.buffer) {
            Ok(n) if n > 0 => {
                // A disk that is full must not end the machine.
                let _ = self.log.write(stream, &self.buffer[..n]);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => *pipe = None,
        }
    }

    /// Reads what is still in the pipes of a program that has ended.
    fn drain(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            loop {
                let pipe = match stream {
                    Stream::Stdout => &self.stdout,
                    Stream::Stderr => &self.stderr,
                };
                let Some(pipe) = pipe else { break };
                let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
                match nix::poll::poll(&mut fds, DRAIN_STEP_MS) {
                    Ok(n) if n > 0 => self.copy(stream),
                    _ => break,
                }
            }
        }
        (self.stdout, self.stderr) = (None, None);
        let _ = self.log.flush();
    }
}

/// The first process of a container gets only signals that it has a handler for: who has none for
/// SIGTERM would wait out the whole grace, and gains nothing by it.
fn terminate(pid: i32) {
    let signal = if catches(pid, Signal::SIGTERM) { Signal::SIGTERM } else { Signal::SIGKILL };
    // It may have ended just now.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Whether the container's first process is still the runtime: runc names it `runc:[2:INIT]`.
fn is_runtime(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("runc:["))
}

fn catches(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    let mask = caught.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal as i32 - 1)) != 0
}

fn pipe() -> Result<(File, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).during("make a pipe")?;
    Ok((File::from(read), write))
}
