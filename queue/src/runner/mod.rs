//! The side of a runner: it claims jobs, keeps its leases alive, and hears when to stop.
//!
//! ```text
//!   claimer    XREADGROUP on its own connection ─▶ Lease ─▶ next()
//!   heartbeat  "I am alive", every few seconds
//!   control    cancel, lost: read on a connection of its own ─▶ the lease's token
//!   returner   leases that were dropped without an end go back at once
//! ```
//!
//! All of them outlive redis-server: they connect again, with pauses, for ever. After each silence
//! the claimer compares what it holds with what redis-server says that it holds.

mod claim;
mod control;
mod ending;
mod held;
mod lease;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use held::CancelReason;
pub use lease::{Lease, Retried};

use crate::backoff::{RECONNECT, jittered};
use crate::batch::Batcher;
use crate::link::Call;
use crate::pending::{Counts, Place, give_back};
use crate::{Queue, QueueError, keys};
use ending::Ending;
use held::Held;

/// Dropped leases that one call gives back.
const RETURNED: usize = 64;

/// redis-server is given this long, twice, when a runner stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// Who takes jobs, and which.
#[derive(Debug, Clone)]
pub struct RunnerOptions {
    /// Unique per start: two runners of one name would take each other's leases for their own.
    pub name: String,
    /// Served in this order within a priority.
    pub queues: Vec<String>,
    /// Leases at a time.
    pub slots: usize,
    pub heartbeat: Duration,
    /// It counts as dead when its heartbeat is missing for this long.
    pub silence: Duration,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            queues: Vec::new(),
            slots: 1,
            heartbeat: Duration::from_secs(5),
            silence: Duration::from_secs(15),
        }
    }
}

/// Takes jobs of its queues. Dropped without [`Runner::close`] it is dead to the others once its
/// heartbeat is missing.
pub struct Runner {
    leases: mpsc::UnboundedReceiver<Lease>,
    shared: Arc<Shared>,
    claimer: TaskTracker,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What the tasks and the leases of a runner share.
pub(crate) struct Shared {
    queue: Queue,
    options: RunnerOptions,
    /// Names of the lanes, in the order in which they are served.
    lanes: Vec<String>,
    slots: Arc<Semaphore>,
    held: Held,
    drain: CancellationToken,
    /// What is held must be compared with what redis-server says.
    doubt: Notify,
    dropped: mpsc::UnboundedSender<(Place, String)>,
    endings: Batcher<Ending, bool>,
}

impl Queue {
    pub async fn runner(&self, options: RunnerOptions) -> Result<Runner, QueueError> {
        if options.name.is_empty() || options.queues.is_empty() || options.slots == 0 {
            let message = "a runner needs a name, a queue and a slot";
            return Err(QueueError::Refused(message.into()));
        }
        let (dropped, returned) = mpsc::unbounded_channel();
        let (link, name) = (self.link.clone(), options.name.clone());
        let endings = Batcher::new(move |endings: Vec<Ending>| {
            let (link, name) = (link.clone(), name.clone());
            async move { ending::end_all(&link, &name, &endings).await }
        });
        let shared = Arc::new(Shared {
            endings,
            queue: self.clone(),
            lanes: keys::lanes_to_serve(&options.queues),
            slots: Arc::new(Semaphore::new(options.slots)),
            held: Held::default(),
            drain: CancellationToken::new(),
            doubt: Notify::new(),
            dropped,
            options,
        });
        let control = shared.open().await?;
        let stop = CancellationToken::new();
        let (claimer, tasks) = (TaskTracker::new(), TaskTracker::new());
        let (sender, leases) = mpsc::unbounded_channel();
        let until_stop = || stop.clone();
        claimer.spawn(until_stop().run_until_cancelled_owned(claim::run(shared.clone(), sender)));
        tasks.spawn(until_stop().run_until_cancelled_owned(beat(shared.clone())));
        tasks.spawn(until_stop().run_until_cancelled_owned(control::run(shared.clone(), control)));
        tasks.spawn(
            until_stop().run_until_cancelled_owned(give_dropped_back(shared.clone(), returned)),
        );
        claimer.close();
        tasks.close();
        Ok(Runner { leases, shared, claimer, tasks, stop })
    }
}

impl Runner {
    /// The next job; none after [`Runner::drain`]. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Lease> {
        tokio::select! {
            biased;
            () = self.shared.drain.cancelled() => None,
            lease = self.leases.recv() => lease,
        }
    }

    /// Takes no more jobs. The leases that are out stay what they are.
    pub fn drain(&self) {
        self.shared.drain.cancel();
    }

    pub fn name(&self) -> &str {
        &self.shared.options.name
    }

    /// Takes no more jobs, gives back what is still leased as if it had not been tried, and signs
    /// off.
    pub async fn close(mut self) {
        self.drain();
        let runner = self.shared.options.name.clone();
        if tokio::time::timeout(FAREWELL, self.claimer.wait()).await.is_err() {
            tracing::warn!(runner, "stops in the middle of a claim: redis-server does not answer");
        }
        while let Ok(lease) = self.leases.try_recv() {
            lease.shelve();
        }
        self.stop.cancel();
        self.claimer.wait().await;
        self.tasks.wait().await;
        match tokio::time::timeout(FAREWELL, self.shared.sign_off()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(runner, %error, "could not sign off; its silence will tell");
            }
            Err(_) => tracing::warn!(runner, "could not sign off in time; its silence will tell"),
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    /// Registers; the position of the control stream from which to listen.
    async fn open(&self) -> Result<String, QueueError> {
        let call = Call::new("open")
            .keys([keys::RUNNERS, keys::RUNNER_QUEUES, keys::QUEUES, keys::CONTROL])
            .keys(self.lanes.iter().map(|l| keys::lane(l)))
            .arg(&self.options.name)
            .num(self.options.silence.as_millis())
            .num(self.options.queues.len())
            .args(&self.options.queues);
        self.queue.link.call(&call).await
    }

    async fn sign_off(&self) -> Result<(), QueueError> {
        let give_up = Call::new("give_up")
            .keys([keys::RUNNERS, keys::RUNNER_QUEUES, keys::CONTROL])
            .arg(&self.options.name);
        self.queue.link.call::<()>(&give_up).await?;
        self.queue.give_all_back(&self.options.name, &self.lanes, Counts::No).await?;
        Ok(())
    }
}

async fn beat(shared: Arc<Shared>) {
    let call = Call::new("beat")
        .keys([keys::RUNNERS, keys::RUNNER_QUEUES])
        .arg(&shared.options.name)
        .num(shared.options.silence.as_millis())
        .arg(shared.options.queues.join(","));
    loop {
        tokio::time::sleep(shared.options.heartbeat).await;
        match shared.queue.link.call_once::<u8>(&call).await {
            Ok(1) => {}
            Ok(_) => {
                tracing::warn!(runner = %shared.options.name, "was given up for dead; checks its leases");
                shared.doubt.notify_one();
            }
            Err(error) => tracing::debug!(%error, "a heartbeat was not heard"),
        }
    }
}

/// Leases that were dropped without an end: whoever worked on them is gone, and that counts.
async fn give_dropped_back(
    shared: Arc<Shared>,
    mut dropped: mpsc::UnboundedReceiver<(Place, String)>,
) {
    let mut batch = Vec::new();
    while dropped.recv_many(&mut batch, RETURNED).await > 0 {
        let mut failures = 0;
        while let Err(error) =
            give_back(&shared.queue.link, &shared.options.name, Counts::Yes, &batch).await
        {
            failures += 1;
            tracing::warn!(jobs = batch.len(), %error, "cannot give back dropped leases yet");
            tokio::time::sleep(jittered(RECONNECT, failures)).await;
        }
        batch.clear();
    }
}
