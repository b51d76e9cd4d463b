//! A redis-server of one's own, and the things that tests ask for.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rhizome_model::{
    Bytes, Capacity, Cpu, DeploymentId, Event, Job, JobId, JobState, Phase, Task, Version, What,
    Work, WorkloadKind,
};
use rhizome_queue::{
    Durability, Lease, MaintainOptions, Queue, QueueConfig, Runner, RunnerOptions,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Whatever a test waits for comes sooner on any machine that is alive.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A redis-server in a folder of its own; both are gone when it is dropped.
pub struct Server {
    process: Child,
    extra: Vec<&'static str>,
    folder: tempfile::TempDir,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(extra: &[&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = spawn(&folder, extra);
        Self { process, extra: extra.to_vec(), folder }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    pub fn config(&self, durability: Durability) -> QueueConfig {
        QueueConfig { socket: self.socket(), durability }
    }

    pub async fn queue(&self) -> Queue {
        self.queue_with(Durability::Always).await
    }

    pub async fn queue_with(&self, durability: Durability) -> Queue {
        Queue::connect(&self.config(durability)).await.unwrap()
    }

    /// A wire of the test's own, to look at what is really there.
    pub async fn wire(&self) -> redis::aio::MultiplexedConnection {
        let address = redis::ConnectionAddr::Unix(self.socket());
        let client = redis::Client::open(address).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// By its name, without SIG.
    pub fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    pub fn start_again(&mut self) {
        self.process = spawn(&self.folder, &self.extra);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(folder: &tempfile::TempDir, extra: &[&str]) -> Child {
    Command::new("redis-server")
        .args(["--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "yes"])
        .args(extra)
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed")
}

/// Waits until it says yes.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

pub fn new_id() -> JobId {
    JobId(uuid::Uuid::new_v4().into_bytes())
}

pub fn job(queue: &str) -> Job {
    let work = Work::Sweep { kind: WorkloadKind::Volume };
    Job::new(new_id(), queue, rhizome_model::AccountId(1), work)
}

pub fn options(name: &str, slots: usize) -> RunnerOptions {
    RunnerOptions {
        name: name.into(),
        queues: vec!["volume".into()],
        slots,
        heartbeat: Duration::from_millis(100),
        silence: Duration::from_millis(1000),
        spool: None,
    }
}

pub async fn runner(queue: &Queue, name: &str) -> Runner {
    queue.runner(options(name, 1)).await.unwrap()
}

pub async fn take(runner: &mut Runner) -> Lease {
    soon("a lease", runner.next()).await.expect("it is not drained")
}

pub async fn state(queue: &Queue, id: JobId) -> JobState {
    queue.job(id).await.unwrap().expect("the job is known").state
}

/// Upkeep with short times, for as long as the guard lives.
pub fn maintain(queue: &Queue) -> DropGuard {
    let stop = CancellationToken::new();
    let (queue, token) = (queue.clone(), stop.clone());
    let options = MaintainOptions {
        sweep: Duration::from_millis(100),
        grace: Duration::from_millis(1000),
        fence: None,
    };
    tokio::spawn(async move { queue.maintain_with(options, token).await });
    stop.drop_guard()
}

pub fn deployment(name: &str) -> DeploymentId {
    format!("1/{name}").parse().unwrap()
}

pub fn capacity(cpu: u32, gib: u64) -> Capacity {
    Capacity { cpu: Cpu::from_millis(cpu), memory: Bytes(gib << 30), disk: Bytes(gib << 30) }
}

pub fn task(id: &DeploymentId, version: u64, reserved: Capacity) -> Task {
    let mut task = Task::new(id.clone(), Version(version), new_id());
    task.reserved = reserved;
    task.envelope = "as signed".into();
    task
}

/// The job of a task, as the supervisor makes it.
pub fn job_of(task: &Task) -> Job {
    Job {
        id: task.job,
        queue: "script".into(),
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        work: if task.phase == Phase::Deleting { Work::Teardown } else { Work::Script },
        ..job("script")
    }
}

pub fn event(task: &Task, message: &str) -> Event {
    Event {
        at: 1,
        deployment: task.deployment.clone(),
        version: task.version,
        node: None,
        what: What::Log { message: message.into() },
    }
}

pub fn message(event: &Event) -> &str {
    match &event.what {
        What::Log { message } => message,
        other => panic!("not a log: {other:?}"),
    }
}
