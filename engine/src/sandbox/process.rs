//! One child process: its pipes, its end.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::time::timeout;

use super::death::{self, MAX_COMPLAINT};

/// What is killed is gone by then, or stuck in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(5);

pub struct Child {
    process: Process,
    pub stdin: Sender,
    pub stdout: Receiver,
    stderr: Receiver,
}

impl Child {
    /// A process that was forked for us, with our ends of its pipes. Call it within a Tokio runtime.
    pub fn new(pid: Pid, [stdin, stdout, stderr]: [OwnedFd; 3]) -> io::Result<Self> {
        Ok(Self {
            process: Process::new(pid)?,
            stdin: Sender::from_owned_fd(stdin)?,
            stdout: Receiver::from_owned_fd(stdout)?,
            stderr: Receiver::from_owned_fd(stderr)?,
        })
    }

    /// What it died of. For a child that has stopped to speak.
    pub async fn death(&mut self) -> death::Death {
        // Without a status it closed its pipe, and lives.
        let status = timeout(Duration::from_secs(1), self.process.wait()).await.ok();
        // A child can write for ever; its last words are at the front.
        let mut complaint = Vec::new();
        let words = (&mut self.stderr).take(MAX_COMPLAINT);
        let read = async { { words }.read_to_end(&mut complaint).await };
        drop(timeout(Duration::from_millis(200), read).await);
        death::Death { status, complaint: String::from_utf8_lossy(&complaint).into_owned() }
    }

    /// Ends it and waits until it is gone.
    pub async fn bury(mut self) {
        self.process.kill();
        if timeout(GONE_WITHIN, self.process.wait()).await.is_err() {
            tracing::warn!(pid = %self.process.pid, "a sandbox does not die");
        }
    }
}

struct Process {
    pid: Pid,
    /// Readable when it has ended.
    end: AsyncFd<OwnedFd>,
    /// Since it was reaped: its id may be another's now.
    status: Option<WaitStatus>,
}

impl Process {
    fn new(pid: Pid) -> io::Result<Self> {
        // SAFETY: takes two numbers; what it answers is a new descriptor of ours, or an error.
        let end = unsafe {
            let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0))?;
            OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
        };
        // SAFETY: an OwnedFd stays the same open descriptor until it is dropped.
        let end = unsafe { AsyncFd::register(end) }?;
        Ok(Self { pid, end, status: None })
    }

    fn look(&mut self) -> Option<WaitStatus> {
        if self.status.is_none() {
            self.status = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => None,
                Ok(status) => Some(status),
                // Nobody else reaps it; should it be gone nevertheless, so is what it died of.
                Err(_) => Some(WaitStatus::Exited(self.pid, -1)),
            };
        }
        self.status
    }

    async fn wait(&mut self) -> WaitStatus {
        loop {
            if let Some(status) = self.look() {
                return status;
            }
            // An error means that the runtime ends: then nobody waits any more either.
            if let Ok(mut ready) = self.end.readable().await {
                ready.clear_ready();
            }
        }
    }

    fn kill(&mut self) {
        if self.look().is_none() {
            // Not reaped yet, so its id is its own.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if self.status.is_some() {
            return;
        }
        let pid = self.pid;
        let reap = move || {
            let _ = waitpid(pid, None);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(reap)),
            Err(_) => reap(),
        }
    }
}
