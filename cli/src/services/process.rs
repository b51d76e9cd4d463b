//! A child process that is kept running: started, watched, restarted, told to stop.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rhizome_model::{Backoff, Code, Failure};
use rhizome_service::random;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

const RESTART: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
/// Who lived as long as the longest pause is not one that cannot live: it starts again without one.
const HEALTHY: Duration = RESTART.cap;

/// How a process is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Its standard input ends: also when we die, however we die.
    Lifeline,
    /// SIGTERM; and the kernel kills it when we die.
    Signal,
}

#[derive(Debug, Clone)]
pub struct Process {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub stop: Stop,
    /// It gets this long to stop by itself.
    pub patience: Duration,
    /// Where its standard error goes; ours when there is none.
    pub log: Option<PathBuf>,
}

/// Keeps a process running until told to stop. The handle ends when it has ended for good.
#[derive(Debug)]
pub struct Kept {
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Kept {
    pub fn start(process: Process) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep(process, stop.clone()));
        Self { task, stop }
    }

    /// Tells it to stop and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a keeper of a process broke off");
        }
    }
}

async fn keep(process: Process, stop: CancellationToken) {
    let mut deaths = 0;
    while !stop.is_cancelled() {
        let started = Instant::now();
        match process.spawn() {
            Ok(mut child) => process.watch(&mut child, &stop).await,
            Err(error) => tracing::error!(process = %process.name, %error, "cannot be started"),
        }
        if stop.is_cancelled() {
            return;
        }
        deaths = if started.elapsed() > HEALTHY { 1 } else { deaths + 1 };
        let pause = random::jittered(RESTART, deaths);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}

impl Process {
    fn spawn(&self) -> Result<Child, Failure> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdout(Stdio::null()).process_group(0).kill_on_drop(true);
        if let Some(log) = &self.log {
            command.stderr(open_log(log)?);
        }
        match self.stop {
            Stop::Lifeline => command.stdin(Stdio::piped()),
            Stop::Signal => command.stdin(Stdio::null()),
        };
        if self.stop == Stop::Signal {
            // SAFETY: prctl is async-signal-safe and touches nothing of ours.
            unsafe {
                command.pre_exec(|| {
                    Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?)
                });
            }
        }
        command.spawn().map_err(|e| {
            let code = if e.kind() == std::io::ErrorKind::NotFound {
                Code::MissingTool
            } else {
                Code::Internal
            };
            Failure::new(code, format!("cannot start {}: {e}", self.program.display()))
        })
    }

    async fn watch(&self, child: &mut Child, stop: &CancellationToken) {
        // Waiting would close it, and that is the sign to stop.
        let lifeline = child.stdin.take();
        let status = tokio::select! {
            status = child.wait() => status,
            () = stop.cancelled() => {
                drop(lifeline);
                self.end(child).await
            }
        };
        match status {
            Ok(status) if stop.is_cancelled() => {
                tracing::info!(process = %self.name, %status, "stopped");
            }
            Ok(status) => tracing::warn!(process = %self.name, %status, "died; starts again"),
            Err(error) => tracing::error!(process = %self.name, %error, "cannot be waited for"),
        }
    }

    async fn end(&self, child: &mut Child) -> std::io::Result<std::process::ExitStatus> {
        if let (Stop::Signal, Some(pid)) = (self.stop, child.id()) {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        if let Ok(status) = tokio::time::timeout(self.patience, child.wait()).await {
            return status;
        }
        tracing::warn!(process = %self.name, "does not stop; killed");
        child.start_kill()?;
        child.wait().await
    }
}

fn open_log(path: &Path) -> Result<std::fs::File, Failure> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
        Failure::new(
            Code::StateNotWritable,
            format!("cannot write the log {}: {e}", path.display()),
        )
    })
}
