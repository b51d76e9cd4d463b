//! Starts children and waits until they are ready for a script.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::death::{self, MAX_COMPLAINT};
use crate::wire::{FromChild, ToChild, receive, send};

/// A child that is not ready by then is not going to be.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// What is killed is gone by then, or stuck in the kernel.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// One child process.
pub struct Child {
    process: tokio::process::Child,
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    stderr: ChildStderr,
}

impl Child {
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    pub fn alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// What it died of. For a child that has stopped to speak.
    pub async fn death(&mut self) -> death::Death {
        let status = match timeout(Duration::from_secs(1), self.process.wait()).await {
            Ok(status) => status.ok(),
            // It closed its pipe, and lives.
            Err(_) => None,
        };
        // A child can write for ever; its last words are at the front.
        let mut complaint = Vec::new();
        let words = (&mut self.stderr).take(MAX_COMPLAINT);
        let read = async { { words }.read_to_end(&mut complaint).await };
        drop(timeout(Duration::from_millis(200), read).await);
        death::Death { status, complaint: String::from_utf8_lossy(&complaint).into_owned() }
    }

    /// Ends it and waits until it is gone.
    pub async fn bury(mut self) {
        drop(self.stdin);
        if let Err(error) = self.process.start_kill() {
            tracing::debug!(%error, "a sandbox was gone already");
        }
        if timeout(GONE_WITHIN, self.process.wait()).await.is_err() {
            tracing::warn!(pid = self.process.id(), "a sandbox does not die");
        }
    }
}

/// Starts processes from a thread that lives as long as the pool: the kernel kills a child when
/// the *thread* that started it ends, and Tokio's threads come and go.
pub struct Nursery {
    orders: mpsc::Sender<oneshot::Sender<io::Result<Child>>>,
    uid_gid: u32,
}

impl Nursery {
    pub fn new(program: PathBuf, args: Vec<String>, uid_gid: u32) -> Self {
        let (orders, queue) = mpsc::channel::<oneshot::Sender<io::Result<Child>>>();
        let runtime = Handle::current();
        let thread = std::thread::Builder::new().name("sandbox-nursery".into());
        let body = move || {
            let _runtime = runtime.enter();
            for order in queue {
                // Who ordered may be gone: then the child dies with the answer.
                drop(order.send(spawn(&program, &args)));
            }
        };
        if let Err(error) = thread.spawn(body) {
            // `raise` says so to whoever asks, as the queue has no reader.
            tracing::error!(%error, "the thread that starts sandboxes could not be started");
        }
        Self { orders, uid_gid }
    }

    /// A new child, warm.
    pub async fn raise(&self) -> io::Result<Child> {
        let (answer, child) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts sandboxes is gone");
        self.orders.send(answer).map_err(|_| gone())?;
        let mut child = child.await.map_err(|_| gone())??;
        match timeout(READY_WITHIN, ready(&mut child, self.uid_gid)).await {
            Ok(Ok(())) => Ok(child),
            Ok(Err(error)) => {
                let death = child.death().await;
                child.bury().await;
                Err(io::Error::other(format!("{error}; {death}")))
            }
            Err(_) => {
                child.bury().await;
                let seconds = READY_WITHIN.as_secs();
                Err(io::Error::other(format!("it was not ready within {seconds} s")))
            }
        }
    }
}

async fn ready(child: &mut Child, uid_gid: u32) -> io::Result<()> {
    send(&mut child.stdin, &ToChild::Setup { uid_gid }).await?;
    match receive(&mut child.stdout).await? {
        (FromChild::Ready, _) => Ok(()),
        _ => Err(io::Error::other("it speaks before it is asked")),
    }
}

fn spawn(program: &PathBuf, args: &[String]) -> io::Result<Child> {
    let mut process = Command::new(program)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for us to handle.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", program.display())))?;
    let lost = || io::Error::other("a pipe that was asked for is missing");
    Ok(Child {
        stdin: process.stdin.take().ok_or_else(lost)?,
        stdout: process.stdout.take().ok_or_else(lost)?,
        stderr: process.stderr.take().ok_or_else(lost)?,
        process,
    })
}
