//! What a backend must be able to do.

use std::any::Any;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use rhizome_model::api::{AccountLimits, OutputChunk, PoolMode};
use rhizome_model::{AccountId, Event, Failure, Job, JobId, JobState, Outcome, Task};
use rhizome_queue::{
    CancelReason, JobRecord, Periodic, QueueError, QueueStats, Retried, Submission,
};
use serde_json::Value;

pub type Result<T> = std::result::Result<T, QueueError>;

/// What not every backend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// A server that can be killed, started again and frozen, and runners that keep their outcomes
    /// on disk meanwhile.
    Outages,
    /// Tasks, which a lease writes.
    Tasks,
    /// It can say what it holds of jobs that have ended, and how that fits together.
    Remains,
}

#[async_trait]
pub trait Backend: Send + Sync {
    fn name(&self) -> String;

    /// Why it cannot be run here; none when it can.
    fn is_missing(&self) -> Option<String> {
        None
    }

    /// Why it does not have this; none when it does.
    fn lacks(&self, capability: Capability) -> Option<String>;

    /// A fresh one, with nothing in it, that has all that is needed. It is gone when it is dropped.
    async fn start(&self, needs: &[Capability]) -> anyhow::Result<Box<dyn Node>>;
}

/// Upkeep, for as long as it is not dropped.
pub type Upkeep = Box<dyn Any + Send + Sync>;

/// A runner, as it is asked for.
#[derive(Debug, Clone)]
pub struct Seat {
    pub name: String,
    pub queues: Vec<String>,
    pub slots: usize,
}

/// The queue of one node. The clock is Unix milliseconds, the same as the machine's.
#[async_trait]
pub trait Node: Send + Sync {
    async fn submit(&self, jobs: &[Job]) -> Result<Vec<Submission>>;
    /// The state after that.
    async fn cancel(&self, id: JobId) -> Result<JobState>;
    async fn again(&self, id: JobId) -> Result<JobId>;
    async fn job(&self, id: JobId) -> Result<Option<JobRecord>>;
    async fn wait(&self, id: JobId) -> Result<Outcome>;
    async fn stats(&self) -> Result<Vec<QueueStats>>;

    /// A runner that counts as silent after [`Node::silence`].
    async fn runner(&self, seat: Seat) -> Result<Box<dyn Runner>>;
    /// How long nothing may be heard of a runner of this node.
    fn silence(&self) -> Duration;
    /// The supervisor saw that a runner is dead: what it still had to say is said, then its jobs go
    /// back, and the attempts count.
    async fn bury(&self, runner: &str) -> Result<()>;
    /// Time passes: what is due is done. There may be several at a time.
    fn maintain(&self) -> Upkeep;

    async fn set_mode(&self, queue: &str, mode: PoolMode) -> Result<()>;
    async fn set_limits(&self, account: Option<AccountId>, limits: AccountLimits) -> Result<()>;
    async fn set_periodic(&self, jobs: &[Periodic]) -> Result<()>;

    /// What a job printed and prints, then how it ended.
    fn output(&self, id: JobId) -> BoxStream<'static, Result<OutputChunk>>;
    async fn publish(&self, events: &[Event]) -> Result<()>;
    /// The events after the one with this id; none: from the first. Never ends.
    fn follow(&self, after: Option<String>) -> BoxStream<'static, Result<(String, Event)>>;

    /// [`Capability::Tasks`]: takes in a new task and the job that works on it.
    async fn accept(&self, _task: &Task, _job: &Job) -> Result<()> {
        Err(lacking())
    }
    /// [`Capability::Tasks`]
    async fn task(&self, _task: &Task) -> Result<Option<Task>> {
        Err(lacking())
    }

    /// [`Capability::Outages`]: the server is killed, and nothing is there until it is started.
    async fn kill_server(&self) -> Result<()> {
        Err(lacking())
    }
    /// [`Capability::Outages`]
    async fn start_server(&self) -> Result<()> {
        Err(lacking())
    }
    /// [`Capability::Outages`]: it answers nobody until it is thawed.
    async fn freeze_server(&self) -> Result<()> {
        Err(lacking())
    }
    /// [`Capability::Outages`]
    async fn thaw_server(&self) -> Result<()> {
        Err(lacking())
    }
    /// [`Capability::Outages`]: how many outcomes of a runner wait on disk.
    async fn spooled(&self, _runner: &str) -> Result<usize> {
        Err(lacking())
    }

    /// [`Capability::Remains`]: what does not fit together, while nothing moves.
    async fn faults(&self) -> Result<Vec<String>> {
        Err(lacking())
    }
    /// [`Capability::Remains`]: what is held of jobs beside what goes by itself with time.
    async fn remains(&self) -> Result<Vec<String>> {
        Err(lacking())
    }
}

/// Takes jobs. Dropped, it is dead: it says nothing any more, and neither do its leases.
#[async_trait]
pub trait Runner: Send {
    /// The next job; none once it is drained. May be dropped while it waits.
    async fn next(&mut self) -> Option<Box<dyn Lease>>;
    /// Takes no more.
    fn drain(&self);
    /// Drains, gives back what it has not begun as if it had not been tried, and signs off.
    async fn close(self: Box<Self>);
}

/// One attempt. Dropped without an end while its runner lives, it goes back, and counts.
#[async_trait]
pub trait Lease: Send + Sync {
    fn job(&self) -> &Job;
    /// From 1.
    fn attempt(&self) -> u32;
    /// Returns when its work should stop.
    async fn stopped(&self) -> CancelReason;
    async fn finish(&self, outcome: &Outcome) -> Result<()>;
    async fn retry(&self, failure: &Failure, after: Duration) -> Result<Retried>;
    async fn release(&self) -> Result<()>;
    async fn print(&self, chunk: &OutputChunk) -> Result<()>;
    async fn progress(&self, value: &Value) -> Result<()>;

    /// [`Capability::Tasks`]
    async fn update(&self, _task: &Task, _events: &[Event]) -> Result<()> {
        Err(lacking())
    }
}

fn lacking() -> QueueError {
    QueueError::Refused("this backend does not have that".into())
}
