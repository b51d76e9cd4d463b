//! Our queue on a real server, started for each case.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::api::{AccountLimits, OutputChunk, PoolMode};
use rhizome_model::{AccountId, Event, Failure, Job, JobId, JobState, Outcome, Task};
use rhizome_queue::{
    Accept, Acceptance, Allow, CancelReason, Durability, JobRecord, MaintainOptions, Periodic,
    Queue, QueueConfig, QueueError, QueueStats, Retried, RunnerOptions, Submission,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{Backend, Capability, Lease, Node, Result, Runner, Seat, Upkeep};

/// Longer than a busy machine lets a runner wait for its turn.
const SILENCE: Duration = Duration::from_millis(2000);
const HEARTBEAT: Duration = Duration::from_millis(100);

/// The queue on a redis-server, or on what speaks like one.
pub struct Redis {
    name: &'static str,
    program: &'static str,
    /// For the server, besides what it needs.
    arguments: &'static [&'static str],
}

impl Redis {
    pub fn functions() -> Self {
        Self::new("redis", "redis-server", &[])
    }

    /// On a server that knows no functions, so that each call is a script.
    pub fn scripts() -> Self {
        Self::new("redis-scripts", "redis-server", &["--rename-command", "FUNCTION", ""])
    }

    pub fn valkey() -> Self {
        Self::new("valkey", "valkey-server", &[])
    }

    fn new(name: &'static str, program: &'static str, arguments: &'static [&'static str]) -> Self {
        Self { name, program, arguments }
    }
}

#[async_trait]
impl Backend for Redis {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn is_missing(&self) -> Option<String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there =
            std::env::split_paths(&path).any(|folder| folder.join(self.program).is_file());
        (!is_there).then(|| format!("{} is not installed", self.program))
    }

    fn lacks(&self, _: Capability) -> Option<String> {
        None
    }

    async fn start(&self, needs: &[Capability]) -> anyhow::Result<Box<dyn Node>> {
        let folder = tempfile::tempdir()?;
        let server = Server {
            process: spawn(self.program, self.arguments, folder.path())?,
            program: self.program,
            arguments: self.arguments,
        };
        let socket = folder.path().join("server.sock");
        // What is on disk matters only where it is looked for.
        let durability = match needs.contains(&Capability::Outages) {
            true => Durability::Always,
            false => Durability::None,
        };
        let config = QueueConfig { socket, durability };
        let queue = Queue::connect(&config).await.context("cannot connect")?;
        Ok(Box::new(RedisNode { queue, server: Mutex::new(server), folder }))
    }
}

/// Ends when it is dropped.
struct Server {
    process: Child,
    program: &'static str,
    arguments: &'static [&'static str],
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it was killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn signal(&self, signal: Signal) -> std::io::Result<()> {
        let pid = i32::try_from(self.process.id()).map_err(std::io::Error::other)?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }
}

fn spawn(program: &str, arguments: &[&str], folder: &Path) -> std::io::Result<Child> {
    Command::new(program)
        .args(["--port", "0", "--unixsocket", "server.sock", "--save", "", "--appendonly", "yes"])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

struct RedisNode {
    queue: Queue,
    server: Mutex<Server>,
    /// The server's, with the spools.
    folder: TempDir,
}

impl RedisNode {
    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }
}

/// Whether a file of a spool is more than begun.
fn is_whole(entry: &std::fs::DirEntry) -> bool {
    entry.path().extension().is_none()
}

/// What the machine refused.
fn refused(error: std::io::Error) -> QueueError {
    QueueError::Refused(error.to_string())
}

#[async_trait]
impl Node for RedisNode {
    async fn submit(&self, jobs: &[Job]) -> Result<Vec<Submission>> {
        self.queue.submit(jobs).await
    }

    async fn cancel(&self, id: JobId) -> Result<JobState> {
        self.queue.cancel(id).await
    }

    async fn again(&self, id: JobId) -> Result<JobId> {
        self.queue.again(id).await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>> {
        self.queue.job(id).await
    }

    async fn wait(&self, id: JobId) -> Result<Outcome> {
        self.queue.wait(id).await
    }

    async fn stats(&self) -> Result<Vec<QueueStats>> {
        self.queue.stats().await
    }

    async fn runner(&self, seat: Seat) -> Result<Box<dyn Runner>> {
        let options = RunnerOptions {
            name: seat.name,
            queues: seat.queues,
            slots: seat.slots,
            heartbeat: HEARTBEAT,
            silence: SILENCE,
            spool: Some(self.spool()),
        };
        Ok(Box::new(RedisRunner(self.queue.runner(options).await?)))
    }

    fn silence(&self) -> Duration {
        SILENCE
    }

    async fn bury(&self, runner: &str) -> Result<()> {
        self.queue.deliver_spool(&self.spool(), runner).await?;
        self.queue.release_runner(runner).await?;
        Ok(())
    }

    fn maintain(&self) -> Upkeep {
        let stop = CancellationToken::new();
        let (queue, token) = (self.queue.clone(), stop.clone());
        let options = MaintainOptions {
            sweep: Duration::from_millis(100),
            grace: SILENCE,
            ..MaintainOptions::default()
        };
        tokio::spawn(async move { queue.maintain_with(options, token).await });
        Box::new(stop.drop_guard())
    }

    async fn set_mode(&self, queue: &str, mode: PoolMode) -> Result<()> {
        self.queue.set_mode(queue, mode).await
    }

    async fn set_limits(&self, account: Option<AccountId>, limits: AccountLimits) -> Result<()> {
        self.queue.set_limits(account, limits).await
    }

    async fn set_periodic(&self, jobs: &[Periodic]) -> Result<()> {
        self.queue.set_periodic(jobs).await
    }

    fn output(&self, id: JobId) -> BoxStream<'static, Result<OutputChunk>> {
        self.queue.output(id).boxed()
    }

    async fn publish(&self, events: &[Event]) -> Result<()> {
        self.queue.publish(events).await
    }

    fn follow(&self, after: Option<String>) -> BoxStream<'static, Result<(String, Event)>> {
        self.queue.follow(after).boxed()
    }

    async fn accept(&self, task: &Task, job: &Job) -> Result<()> {
        let nonce = job.id.to_string();
        let request = Accept {
            task,
            base: None,
            nonce: &nonce,
            nonce_expires: 4_000_000_000,
            digest: &nonce,
            total: task.reserved,
            allow: Allow::AsBefore,
            jobs: std::slice::from_ref(job),
            events: &[],
        };
        match self.queue.accept(request).await? {
            Acceptance::Accepted { .. } => Ok(()),
            other => Err(QueueError::Refused(format!("{other:?}"))),
        }
    }

    async fn task(&self, task: &Task) -> Result<Option<Task>> {
        self.queue.task(&task.deployment).await
    }

    async fn kill_server(&self) -> Result<()> {
        let mut server = self.server();
        server.process.kill().map_err(refused)?;
        server.process.wait().map_err(refused)?;
        Ok(())
    }

    async fn start_server(&self) -> Result<()> {
        let mut server = self.server();
        server.process =
            spawn(server.program, server.arguments, self.folder.path()).map_err(refused)?;
        Ok(())
    }

    async fn freeze_server(&self) -> Result<()> {
        self.server().signal(Signal::SIGSTOP).map_err(refused)
    }

    async fn thaw_server(&self) -> Result<()> {
        self.server().signal(Signal::SIGCONT).map_err(refused)
    }

    async fn spooled(&self, runner: &str) -> Result<usize> {
        match std::fs::read_dir(self.spool().join(runner)) {
            Ok(entries) => Ok(entries.flatten().filter(is_whole).count()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(refused(error)),
        }
    }

    async fn faults(&self) -> Result<Vec<String>> {
        Ok(self.queue.audit().await?.faults)
    }

    async fn remains(&self) -> Result<Vec<String>> {
        Ok(self.queue.audit().await?.remains)
    }
}

struct RedisRunner(rhizome_queue::Runner);

#[async_trait]
impl Runner for RedisRunner {
    async fn next(&mut self) -> Option<Box<dyn Lease>> {
        Some(Box::new(RedisLease(self.0.next().await?)))
    }

    fn drain(&self) {
        self.0.drain();
    }

    async fn close(self: Box<Self>) {
        self.0.close().await;
    }
}

struct RedisLease(rhizome_queue::Lease);

#[async_trait]
impl Lease for RedisLease {
    fn job(&self) -> &Job {
        &self.0.job
    }

    fn attempt(&self) -> u32 {
        self.0.attempt
    }

    async fn stopped(&self) -> CancelReason {
        self.0.cancelled().cancelled().await;
        // The reason is there before its token is cancelled.
        self.0.cancel_reason().unwrap_or(CancelReason::Lost)
    }

    async fn finish(&self, outcome: &Outcome) -> Result<()> {
        self.0.finish(outcome).await
    }

    async fn retry(&self, failure: &Failure, after: Duration) -> Result<Retried> {
        self.0.retry(failure, after, &[]).await
    }

    async fn release(&self) -> Result<()> {
        self.0.release().await
    }

    async fn print(&self, chunk: &OutputChunk) -> Result<()> {
        self.0.print(chunk).await
    }

    async fn progress(&self, value: &Value) -> Result<()> {
        self.0.progress(value).await
    }

    async fn update(&self, task: &Task, events: &[Event]) -> Result<()> {
        self.0.update(task, events).await
    }
}
