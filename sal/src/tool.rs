//! The one door for starting system tools.
//!
//! A tool runs with an empty environment but for a fixed `PATH` and `LC_ALL=C`, without standard
//! input unless we give it one, and not longer than its timeout. What it prints is kept only as far
//! as it is bounded. An error names the program, its arguments and how it ended; a program that is
//! missing is named with the Debian package that has it. A tool does not outlive us, unless it says that
//! it may: what it would still do could undo what is done by whoever takes the resource over.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use rhizome_model::Code;
use tokio_util::sync::CancellationToken;

use crate::Chunk;
use crate::error::{During, Result, SalError};

/// Where tools are looked for besides our own `PATH`, and all that a tool itself gets.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Of what a tool prints, this much is kept.
const KEPT: usize = 64 << 10;
/// Of what a tool prints, this many lines go into an error.
const TAIL_LINES: usize = 20;
/// How soon a cancellation, or the end of a tool whose output stays open, is noticed.
const STEP: Duration = Duration::from_millis(50);

/// A tool that is about to run.
pub(crate) struct Tool {
    program: OsString,
    args: Vec<OsString>,
    stdin: Option<Vec<u8>>,
    folder: Option<PathBuf>,
    timeout: Option<Duration>,
    cancel: CancellationToken,
    outlives_us: bool,
}

/// A tool that runs and waits for its input. Dropped, it is killed.
pub(crate) struct Begun {
    tool: Tool,
    child: Child,
}

/// How a tool that was let run to its end has ended.
pub(crate) struct Ended {
    pub status: ExitStatus,
    stdout: Tail,
    stderr: Tail,
}

impl Tool {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            stdin: None,
            folder: None,
            timeout: Some(DEFAULT_TIMEOUT),
            cancel: CancellationToken::new(),
            outlives_us: false,
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(text.into());
        self
    }

    /// Runs it in this folder.
    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    pub fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    pub fn cancel(mut self, cancel: &CancellationToken) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// For one that goes by itself when its input ends early, as it does when we are killed. Tying it to us
    /// takes a copy of ourselves, and that a millisecond.
    pub fn may_outlive_us(mut self) -> Self {
        self.outlives_us = true;
        self
    }

    /// Runs it; any end but exit status 0 is an error. Answers what it printed.
    pub fn run(self) -> Result<String> {
        self.begin()?.run()
    }

    /// Runs it to its end, whatever that is, and hands over what it prints; when `sink` says no, it
    /// is killed.
    pub fn stream(self, sink: &mut dyn FnMut(Chunk) -> bool) -> Result<Ended> {
        self.begin()?.stream(sink)
    }

    /// Starts it; its input is given to it when it is run to its end.
    pub fn begin(self) -> Result<Begun> {
        let mut command = command(&find(&self.program)?);
        command
            .args(&self.args)
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        if !self.outlives_us {
            die_with_us(&mut command);
        }
        let child = command.spawn().during(format_args!("start '{}'", self.line()))?;
        Ok(Begun { tool: self, child })
    }

    fn line(&self) -> String {
        std::iter::once(&self.program)
            .chain(&self.args)
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl Begun {
    /// As [`Tool::run`].
    pub fn run(self) -> Result<String> {
        let line = self.tool.line();
        let ended = self.stream(&mut |_| true)?;
        if ended.status.success() { Ok(ended.stdout.text()) } else { Err(ended.error(&line)) }
    }

    /// As [`Tool::stream`].
    fn stream(mut self, sink: &mut dyn FnMut(Chunk) -> bool) -> Result<Ended> {
        let (line, timeout) = (self.tool.line(), self.tool.timeout);
        if let (Some(text), Some(mut pipe)) = (self.tool.stdin.take(), self.child.stdin.take()) {
            // A tool that ends early says why itself; a broken pipe would hide it.
            let _ = pipe.write_all(&text);
        }
        let deadline = timeout.map(|t| Instant::now() + t);
        let pumped = pump(&mut self.child, deadline, &self.tool.cancel, sink);
        if pumped.is_err() {
            // It may have ended by itself just now; it is waited for in any case.
            let _ = self.child.kill();
        }
        let status = self.child.wait().during(format_args!("wait for '{line}'"))?;
        match pumped {
            Ok((stdout, stderr)) => Ok(Ended { status, stdout, stderr }),
            Err(Stopped::Timeout) => Err(SalError::new(
                Code::TimedOut,
                format!("'{line}' took longer than {timeout:?} and was killed"),
            )),
            Err(Stopped::Cancelled) => {
                Err(SalError::new(Code::Cancelled, format!("'{line}' was cancelled")))
            }
            Err(Stopped::Io(e)) => Err(e).during(format_args!("read what '{line}' prints")),
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // Of one that was waited for both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    pub fn error(&self, line: &str) -> SalError {
        let tail = self.stderr.lines(TAIL_LINES);
        let last = tail.lines().last().unwrap_or("it printed nothing").to_owned();
        SalError::new(Code::ToolFailed, format!("'{line}' failed ({}): {last}", self.status))
            .with_detail(tail)
    }
}

/// A program with the environment that every tool gets: for who hands over the streams himself.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", DEFAULT_PATH).env("LC_ALL", "C");
    command
}

/// Has the kernel kill the tool when the thread that waits for it is gone.
pub(crate) fn die_with_us(command: &mut Command) {
    let us = nix::unistd::getpid();
    let tie = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // We may have died before that.
        if nix::unistd::getppid() == us { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: both calls are plain system calls and allocate nothing.
    unsafe { command.pre_exec(tie) };
}

enum Stopped {
    Timeout,
    Cancelled,
    Io(std::io::Error),
}

impl From<std::io::Error> for Stopped {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e)
    }
}

/// Reads both pipes until they end, or until the tool has: a grandchild may hold them open.
fn pump(
    child: &mut Child,
    deadline: Option<Instant>,
    cancel: &CancellationToken,
    sink: &mut dyn FnMut(Chunk) -> bool,
) -> std::result::Result<(Tail, Tail), Stopped> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut out_tail, mut err_tail) = (Tail::default(), Tail::default());
    let mut buffer = vec![0; 16 << 10];
    loop {
        if cancel.is_cancelled() {
            return Err(Stopped::Cancelled);
        }
        if deadline.is_some_and(|d| Instant::now() >= d) {
            return Err(Stopped::Timeout);
        }
        if out.is_none() && err.is_none() {
            if child.try_wait()?.is_some() {
                break;
            }
            // It has closed its output but goes on; there is nothing to wait on but time.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let (out_ready, err_ready) = ready(out.as_ref(), err.as_ref())?;
        if !out_ready && !err_ready && child.try_wait()?.is_some() {
            break;
        }
        let mut wanted = true;
        if out_ready {
            wanted &= take(&mut out, &mut buffer, &mut out_tail, &mut |b| sink(Chunk::Stdout(b)))?;
        }
        if err_ready {
            wanted &= take(&mut err, &mut buffer, &mut err_tail, &mut |b| sink(Chunk::Stderr(b)))?;
        }
        if !wanted {
            return Err(Stopped::Cancelled);
        }
    }
    Ok((out_tail, err_tail))
}

fn ready<A: AsFd, B: AsFd>(out: Option<&A>, err: Option<&B>) -> std::io::Result<(bool, bool)> {
    let mut fds = Vec::with_capacity(2);
    fds.extend(out.map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
    fds.extend(err.map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
    let step = PollTimeout::try_from(STEP).unwrap_or(PollTimeout::ZERO);
    match nix::poll::poll(&mut fds, step) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    let is_ready = |fd: Option<&PollFd>| fd.and_then(PollFd::any).unwrap_or(false);
    Ok(match (out, err) {
        (Some(_), _) => (is_ready(fds.first()), is_ready(fds.get(1))),
        (None, _) => (false, is_ready(fds.first())),
    })
}

fn take<R: Read>(
    pipe: &mut Option<R>,
    buffer: &mut [u8],
    tail: &mut Tail,
    sink: &mut dyn FnMut(Vec<u8>) -> bool,
) -> std::io::Result<bool> {
    let Some(reader) = pipe else { return Ok(true) };
    match reader.read(buffer) {
        Ok(0) => *pipe = None,
        Ok(n) => {
            tail.push(&buffer[..n]);
            return Ok(sink(buffer[..n].to_vec()));
        }
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
        Err(e) => return Err(e),
    }
    Ok(true)
}

/// The end of what was printed.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 2 * KEPT {
            self.bytes.drain(..self.bytes.len() - KEPT);
        }
    }

    fn text(&self) -> String {
        let from = self.bytes.len().saturating_sub(KEPT);
        String::from_utf8_lossy(&self.bytes[from..]).into_owned()
    }

    fn lines(&self, n: usize) -> String {
        last_lines(&self.text(), n)
    }
}

pub(crate) fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

/// The program's file, found on our `PATH` or in the usual places.
pub(crate) fn find(program: &OsStr) -> Result<PathBuf> {
    let missing = || {
        let name = program.to_string_lossy();
        let package = package(&name);
        SalError::new(
            Code::MissingTool,
            format!("'{name}' is not installed: install it with 'apt-get install {package}'"),
        )
    };
    let path = Path::new(program);
    if path.is_absolute() {
        return if path.is_file() { Ok(path.to_owned()) } else { Err(missing()) };
    }
    let own = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&own)
        .chain(std::env::split_paths(DEFAULT_PATH))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or_else(missing)
}

/// The Debian package of a program.
fn package(program: &str) -> &str {
    match program.rsplit('/').next().unwrap_or(program) {
        "ip" => "iproute2",
        "qemu-system-x86_64" => "qemu-system-x86",
        "nft" => "nftables",
        "mkfs.btrfs" => "btrfs-progs",
        "mount" => "mount",
        tool if tool.starts_with("tpm2_") => "tpm2-tools",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_program_arguments_and_status() {
        let error = Tool::new("sh").args(["-c", "echo why >&2; exit 3"]).run().unwrap_err();
        assert_eq!(error.code(), Code::ToolFailed);
        let message = error.to_string();
        assert!(message.contains("sh -c") && message.contains("exit status: 3"), "{message}");
        assert!(message.ends_with("why"), "{message}");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = find(OsStr::new("mkfs.btrfs-not-there")).unwrap_err();
        assert_eq!(error.code(), Code::MissingTool);
        assert_eq!(package("/sbin/mkfs.btrfs"), "btrfs-progs");
    }

    #[test]
    fn it_does_not_run_longer_than_it_may() {
        let begin = Instant::now();
        let error = Tool::new("sleep")
            .arg("60")
            .timeout(Some(Duration::from_millis(100)))
            .run()
            .unwrap_err();
        assert_eq!(error.code(), Code::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_grandchild_that_holds_the_pipe_does_not_hold_us() {
        let begin = Instant::now();
        let output = Tool::new("sh").args(["-c", "sleep 20 & echo done"]).run().unwrap();
        assert_eq!(output, "done\n");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_environment_is_empty_but_for_what_is_fixed() {
        let output = Tool::new("env").run().unwrap();
        let mut lines: Vec<_> = output.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C".to_owned(), format!("PATH={DEFAULT_PATH}")]);
    }

    #[test]
    fn one_that_was_begun_waits_for_its_input_and_goes_with_us() {
        let begun = |n: &str| Tool::new("sh").args(["-c", "cat; sleep $0", n]).stdin("x").begin();
        let (waits, goes) = (begun("0").unwrap(), begun("60").unwrap());
        let left = goes.child.id();
        drop(goes);
        assert!(!Path::new(&format!("/proc/{left}")).exists());
        assert_eq!(waits.run().unwrap(), "x");
    }

    #[test]
    fn input_is_given_and_much_output_is_bounded() {
        let output = Tool::new("cat").stdin("hello").run().unwrap();
        assert_eq!(output, "hello");
        let output = Tool::new("head").args(["-c", "1000000", "/dev/zero"]).run().unwrap();
        assert_eq!(output.len(), KEPT);
    }
}
