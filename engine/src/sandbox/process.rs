//! One child process: its pipes, its end.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
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
use super::zygote::{Forked, Newborn};
use crate::wire::When;

/// What is killed is gone by then, or stuck in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Who has closed its pipes is at its end by then, or not at all.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

pub struct Child {
    process: Process,
    stdin: Sender,
    when: When,
    /// Bytes that were written to `stdin`.
    told: usize,
    pub stdout: Receiver,
    stderr: Receiver,
}

impl Child {
    /// A process that was forked for us, with our ends of its pipes. Call it within a Tokio runtime.
    pub fn new(Forked { newborn, pipes }: Forked, when: When) -> io::Result<Self> {
        let [stdin, stdout, stderr] = pipes;
        Ok(Self {
            process: Process::new(newborn)?,
            stdin: Sender::from_owned_fd(stdin)?,
            when,
            told: 0,
            stdout: Receiver::from_owned_fd(stdout)?,
            stderr: Receiver::from_owned_fd(stderr)?,
        })
    }

    pub async fn tell(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stdin.writable().await?;
            match self.stdin.try_write(bytes) {
                Ok(written) => {
                    self.told += written;
                    bytes = &bytes[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether it has ended.
    pub fn is_gone(&mut self) -> bool {
        self.process.look().is_some()
    }

    /// Whether it waited, and came to its end before it took anything of what it was told: then
    /// another can be told the same. For a child that has stopped to speak.
    pub async fn heard_nothing(&mut self) -> bool {
        if self.when == When::Now {
            return false;
        }
        let gone = timeout(ENDS_WITHIN, self.process.wait()).await.is_ok();
        let mut unread: libc::c_int = 0;
        // SAFETY: the descriptor is ours and open; the number is on this stack.
        let asked = unsafe { libc::ioctl(self.stdin.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
        gone && asked == 0 && usize::try_from(unread).is_ok_and(|n| n == self.told)
    }

    /// Returns when it has ended.
    pub fn end(&self) -> impl Future<Output = ()> + use<> {
        let end = Arc::clone(&self.process.end);
        async move {
            // An error means that the runtime ends: then nobody waits any more either.
            drop(end.readable().await);
        }
    }

    /// What it died of. For a child that has stopped to speak.
    pub async fn death(&mut self) -> death::Death {
        // Without a status it closed its pipe, and lives.
        let status = timeout(ENDS_WITHIN, self.process.wait()).await.ok();
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
    end: Arc<AsyncFd<OwnedFd>>,
    /// Since it was reaped: its id may be another's now.
    status: Option<WaitStatus>,
}

impl Process {
    fn new(newborn: Newborn) -> io::Result<Self> {
        let pid = newborn.pid().ok_or_else(|| io::Error::other("it is another's already"))?;
        // SAFETY: takes two numbers; what it answers is a new descriptor of ours, or an error.
        let end = unsafe {
            let fd = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0))?;
            OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?)
        };
        // SAFETY: an OwnedFd stays the same open descriptor until it is dropped.
        let end = unsafe { AsyncFd::register(end) }?;
        newborn.adopted();
        Ok(Self { pid, end: Arc::new(end), status: None })
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
