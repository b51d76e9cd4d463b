//! The shim: one small process per program that is its parent on the node.
//!
//! ```text
//!   ensure ─calls, GO─▶ shim ──runs──▶ starter ──▶ program (reparented to the shim)
//!                       ▲  ◀──────── stdout, stderr, serial ──┘
//!                SIGTERM, SIGINT, SIGHUP          ──▶ log files, state.json
//! ```
//!
//! It is in a session of its own and outlives whoever started it. It copies what the program prints
//! to the log, writes what happens to `state.json`, starts the program again as the restart policy
//! says, and goes when there is nothing left to watch. SIGTERM stops the program on request, SIGINT
//! because the node goes down or the resource goes away, SIGHUP makes it read its orders again.
//!
//! It is synchronous and has one thread: it is there once per program.

mod children;
mod output;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid, setsid};
use rhizome_model::Code;

use self::children::Starter;
use self::output::Output;
use super::life::{Event, Life, Record, Stop};
use super::orders::Orders;
use super::place;
use crate::cgroup::{fork_into, put};
use crate::error::{During, Result, SalError, shown};
use crate::files;

/// How long a shim waits for the one before it to be gone.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// What a shim hears when its orders are written. One that is left alone before that goes.
pub(super) const GO: &str = "go";
/// What it is told when it is to be moved into its control group while it waits.
pub(super) const MOVED: &str = "moved";

/// The body of the hidden subcommand `machine-shim DIR RUN GROUP [moved]`; `args` is what follows its name.
/// It must be called before anything starts a thread.
pub fn machine_shim_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let (Some(dir), Some(run), Some(group)) = (args.next(), args.next(), args.next()) else {
        return complain("machine-shim takes a folder, the name of a run and a control group", 2);
    };
    let is_moved = args.next().is_some_and(|word| word == MOVED);
    match begin(Path::new(&dir), &run.to_string_lossy(), Path::new(&group), is_moved) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string(), 1),
    }
}

fn complain(message: &str, code: u8) -> ExitCode {
    // Whoever started us reads it; without a reader there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(code)
}

/// Goes to the background, into a control group of its own, and waits for its orders there. Whoever calls it
/// and dies takes the other end of the standard input along.
fn begin(dir: &Path, run: &str, group: &Path, is_moved: bool) -> Result<()> {
    if is_moved {
        put(std::process::id(), group)?;
    }
    // SAFETY: there is no other thread that could hold a lock.
    match unsafe { fork_into(group) }? {
        ForkResult::Parent { .. } => Ok(()),
        ForkResult::Child => {
            setsid().during("begin a session")?;
            if std::io::read_to_string(std::io::stdin()).during("wait for orders")? != GO {
                return Ok(());
            }
            detach()?;
            supervise(dir, run)
        }
    }
}

fn detach() -> Result<()> {
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
    output: Output,
    starter: Option<Starter>,
    /// Children that ended before the starter said which of them is the program.
    early: Vec<(Pid, i32)>,
    ooms: u64,
    /// When the program that is being stopped is asked to end, or asked again.
    asks_at: u64,
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
            output: Output::open(dir, &orders)?,
            orders,
            starter: None,
            early: Vec::new(),
            ooms: 0,
            asks_at: 0,
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until something happens, and sees to it.
    fn turn(&mut self) -> Result<()> {
        self.output.connect();
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let sources = self.output.sources();
        fds.extend(sources.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)));
        let happened = match nix::poll::poll(&mut fds, self.pause()) {
            Ok(n) => n > 0,
            Err(Errno::EINTR) => return Ok(()),
            Err(e) => return Err(e).during("wait for the program"),
        };
        let ready: Vec<bool> = fds.iter().map(|f| f.any().unwrap_or(false)).collect();
        let speaking: Vec<_> = sources.iter().map(|(source, _)| *source).collect();
        for (source, _) in speaking.into_iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            self.output.copy(source);
        }
        if ready[0] {
            self.take_signals()?;
        }
        if !happened {
            self.output.flush();
        }
        self.see_to_time();
        Ok(())
    }

    fn pause(&self) -> PollTimeout {
        let is_stopping = matches!(self.record.life, Life::Stopping { .. });
        let asks = is_stopping.then_some(self.asks_at);
        let starter = self.starter.as_ref().map(|s| s.until);
        let due = self.record.life.due().into_iter().chain(starter).chain(asks).min();
        let due = due.map(|d| d.saturating_sub(self.now()));
        let pause = due.into_iter().chain(self.output.pause()).min();
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
        if let Some(starter) = self.starter.as_mut().filter(|s| now >= s.until) {
            // Its end is reaped, and is a start that failed.
            let _ = kill(starter.pid, Signal::SIGKILL);
            starter.until = u64::MAX;
            starter.is_late = true;
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

    /// Takes a step of the program's life, and does what the new state asks for.
    fn happen(&mut self, event: Event) {
        let was = self.record.life.clone();
        // What cannot happen now, such as a stop of what has ended, changes nothing.
        if self.record.step(event, self.orders.policy(), self.now()).is_err() {
            return;
        }
        match &self.record.life {
            Life::Starting { stop: None } => self.start(),
            Life::Starting { stop: Some(_) } => self.hurry(),
            Life::Running { .. } => {
                self.record.started_at = Some(jiff::Timestamp::now().as_millisecond());
            }
            Life::Stopping { .. } if !matches!(was, Life::Stopping { .. }) => {
                self.asks_at = self.now();
                self.ask();
            }
            Life::Stopping { .. }
            | Life::BackingOff { .. }
            | Life::Exited { .. }
            | Life::Stopped
            | Life::Interrupted
            | Life::Failed { .. } => {}
        }
        self.save();
    }

    /// A start that nobody wants any more has no longer than a stop has.
    fn hurry(&mut self) {
        let until = self.now() + self.orders.program.grace_ms;
        if let Some(starter) = &mut self.starter {
            starter.until = starter.until.min(until);
        }
    }

    fn save(&self) {
        // An end must survive a power cut: what ran once does not run again. A disk that is full
        // must not end the program.
        let durable = self.record.life.is_end();
        let _ = files::replace_json(&place::record_file(&self.dir), &self.record, durable);
    }
}
