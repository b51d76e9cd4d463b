//! A running `rhizome dev` and commands against it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::kernel::{Kernel, processes_naming};

const READY: Duration = Duration::from_secs(120);
const STOPPED: Duration = Duration::from_secs(120);

/// A whole system on a state folder of its own. Dropping it stops it.
pub struct System {
    pub state: PathBuf,
    dev: Option<Child>,
    args: Vec<String>,
    _folder: Option<tempfile::TempDir>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {}\n{}", self.stdout, self.stderr))
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Refused or failed with this exit code and error code.
    #[track_caller]
    pub fn refused(self, code: i32, word: &str) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.json()["code"], word, "{}", self.stdout);
        self
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl System {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(args: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("rhizome-test.").tempdir().unwrap();
        let mut system = Self {
            state: folder.path().canonicalize().unwrap(),
            dev: None,
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            _folder: Some(folder),
        };
        system.up();
        system
    }

    /// Starts `rhizome dev` on the state folder and waits for its `ready` line.
    pub fn up(&mut self) {
        let mut dev = command()
            .arg("dev")
            .args(["--log", "info", "--state"])
            .arg(&self.state)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = dev.stdout.take().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(READY).unwrap_or_default();
        self.dev = Some(dev);
        assert!(line.starts_with("ready "), "no ready line but {line:?}\n{}", self.logs());
    }

    /// Ctrl-C, and the wait for its end.
    #[track_caller]
    pub fn down(&mut self) {
        let Some(mut dev) = self.dev.take() else { return };
        kill(Pid::from_raw(dev.id().cast_signed()), Signal::SIGINT).unwrap();
        let deadline = Instant::now() + STOPPED;
        let status = loop {
            if let Some(status) = dev.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let _ = dev.kill();
                panic!("rhizome dev does not stop\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(status.success(), "rhizome dev ended with {status}\n{}", self.logs());
    }

    /// Gives up a `rhizome dev` that was killed.
    pub fn forget(&mut self) {
        if let Some(mut dev) = self.dev.take() {
            let _ = dev.wait();
        }
    }

    /// A command of a user, with `--json`.
    #[track_caller]
    pub fn rhizome(&self, args: &[&str]) -> Answer {
        self.plain(&[&["--json"], args].concat())
    }

    /// A command of a user, as people see it.
    #[track_caller]
    pub fn plain(&self, args: &[&str]) -> Answer {
        let output = command().arg("--state").arg(&self.state).args(args).output().unwrap();
        output.into()
    }

    /// A command that reads this from its standard input.
    pub fn with_input(&self, args: &[&str], input: &str) -> Answer {
        use std::io::Write;
        let mut child = command()
            .args(["--json", "--state"])
            .arg(&self.state)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Too large an input is refused before all of it is read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap().into()
    }

    /// A script in a file of the state folder.
    pub fn script(&self, name: &str, source: &str) -> String {
        let path = self.state.join(name);
        std::fs::write(&path, source).unwrap();
        path.to_string_lossy().into_owned()
    }

    /// Process ids of ours whose command line has this word behind the program, for example
    /// `supervisor`; `redis-server` by its name.
    pub fn pids(&self, role: &str) -> Vec<u32> {
        processes_naming(&self.state)
            .into_iter()
            // Redis rewrites its command line: its name and its socket in one word.
            .filter(|p| p.args.get(1).is_some_and(|a| a == role) || p.args[0].starts_with(role))
            .map(|p| p.pid)
            .collect()
    }

    /// The runners that do the jobs of a queue.
    pub fn runners_of(&self, queue: &str) -> Vec<u32> {
        let does = |args: &[String]| {
            let queues = args.windows(2).find(|two| two[0] == "--queues");
            queues.is_some_and(|two| two[1].split(',').any(|q| q == queue))
        };
        processes_naming(&self.state)
            .into_iter()
            .filter(|p| p.args.get(1).is_some_and(|a| a == "runner") && does(&p.args))
            .map(|p| p.pid)
            .collect()
    }

    pub fn kernel(&self) -> Kernel {
        Kernel::look(&self.state)
    }

    /// The ends of all logs, for the message of a failed test.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.state.join("logs")).into_iter().flatten().flatten() {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(40).collect();
            text.push_str(&format!("==> {}\n", entry.path().display()));
            lines.iter().rev().for_each(|l| text.push_str(&format!("{l}\n")));
        }
        text
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            if let Some(dev) = &self.dev {
                let _ = kill(Pid::from_raw(dev.id().cast_signed()), Signal::SIGINT);
            }
            if let Some(mut dev) = self.dev.take() {
                let _ = dev.wait();
            }
        } else {
            self.down();
        }
    }
}

/// The binary that was built with the tests.
pub fn command() -> Command {
    Command::new(binary())
}

pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile: &Path = test.ancestors().nth(2).unwrap();
    let binary = profile.join("rhizome");
    assert!(binary.exists(), "{} is not built: run `make build`", binary.display());
    binary
}

/// Waits until something holds, at most until the deadline.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
