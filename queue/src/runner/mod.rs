//! The side of a runner: it claims jobs, keeps its leases alive, and hears when to stop.
//!
//! ```text
//!   claimer    what has its turn, then XREADGROUP on its own connection ─▶ Lease ─▶ next()
//!   heartbeat  "I am alive", every few seconds
//!   control    cancel, lost: read on a connection of its own ─▶ the lease's token
//!   returner   leases that were dropped without an end go back at once
//!   spool      outcomes that waited on disk while redis-server was away
//! ```
//!
//! All of them outlive redis-server: they connect again, with pauses, for ever. After each silence
//! the claimer compares what it holds with what redis-server says that it holds.

mod claim;
mod control;
mod ending;
mod held;
mod lease;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use held::CancelReason;
pub use lease::{Lease, Retried};

use crate::backoff::{RECONNECT, jittered};
use crate::batch::Batcher;
use crate::link::{BLOCK, Call};
use crate::member::Identity;
use crate::pending::{Counts, Place, give_back, lanes_of};
use crate::spool::Spool;
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
    /// Served in this order: what is ready in the first goes before what is in the next.
    pub queues: Vec<String>,
    /// Leases at a time.
    pub slots: usize,
    pub heartbeat: Duration,
    /// It counts as dead when its heartbeat is missing for this long.
    pub silence: Duration,
    /// The folder in which outcomes wait while redis-server is away; without one, they wait in memory.
    pub spool: Option<PathBuf>,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            queues: Vec::new(),
            slots: 1,
            heartbeat: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            spool: None,
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
    slots: Arc<Semaphore>,
    held: Held,
    drain: CancellationToken,
    /// What is held must be compared with what redis-server says.
    doubt: Notify,
    /// Something may start that could not before.
    look: Notify,
    dropped: mpsc::UnboundedSender<(Place, Identity)>,
    endings: Batcher<Ending, bool>,
    spool: Option<Spool>,
    /// There is something in the spool.
    spooled: Notify,
}

impl Queue {
    pub async fn runner(&self, options: RunnerOptions) -> Result<Runner, QueueError> {
        if options.name.is_empty() || options.queues.is_empty() || options.slots == 0 {
            let message = "a runner needs a name, a queue and a slot";
            return Err(QueueError::Refused(message.into()));
        }
        let (dropped, returned) = mpsc::unbounded_channel();
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| {
            let shared = shared.clone();
            let endings = Batcher::new(move |endings: Vec<Ending>| {
                let shared = shared.upgrade();
                async move {
                    match shared {
                        Some(shared) => shared.end_all(&endings).await,
                        None => Err(QueueError::Refused("the runner is gone".into())),
                    }
                }
            });
            Shared {
                endings,
                queue: self.patient(),
                slots: Arc::new(Semaphore::new(options.slots)),
                held: Held::default(),
                drain: CancellationToken::new(),
                doubt: Notify::new(),
                look: Notify::new(),
                dropped,
                spool: options.spool.as_ref().map(|folder| Spool::new(folder, &options.name)),
                spooled: Notify::new(),
                options,
            }
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
        tasks.spawn(until_stop().run_until_cancelled_owned(deliver_spooled(shared.clone())));
        tasks.spawn(until_stop().run_until_cancelled_owned(claim::watch_drained(shared.clone())));
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
        let queues = &self.options.queues;
        let lanes = queues.iter().map(|queue| keys::ready(queue));
        let call = Call::shared("open")
            .keys([keys::RUNNERS, keys::SERVICES])
            .keys(lanes.map(|lane| keys::lane(&lane)))
            .arg(&self.options.name)
            .num(self.options.silence.as_millis())
            .arg(self.service())
            .args(queues);
        self.queue.link.call(&call).await
    }

    /// What this runner adds to its queues.
    fn service(&self) -> String {
        format!("{} {}", self.options.slots, self.options.queues.join(","))
    }

    async fn sign_off(&self) -> Result<(), QueueError> {
        if let Some(spool) = &self.spool {
            self.held.delivered(&spool.deliver(&self.queue.link).await?);
            spool.close();
        }
        self.queue.give_up(&self.options.name).await?;
        let lanes = lanes_of(&self.queue.link, &self.options.queues).await?;
        self.queue.give_all_back(&self.options.name, &lanes, Counts::No).await?;
        Ok(())
    }

    /// Whether each was ours to end.
    async fn end_all(&self, endings: &[Ending]) -> Result<Vec<bool>, QueueError> {
        let places: Vec<_> = endings.iter().map(|ending| ending.place.clone()).collect();
        let call = ending::call(&self.options.name, endings);
        let fenced = self.deliver::<Vec<usize>>(&call, &places).await?;
        Ok(ending::judge(endings, &fenced.unwrap_or_default()))
    }
}

async fn beat(shared: Arc<Shared>) {
    let call = Call::shared("beat")
        .keys([keys::RUNNERS, keys::SERVICES])
        .arg(&shared.options.name)
        .num(shared.options.silence.as_millis())
        .arg(shared.service());
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
    mut dropped: mpsc::UnboundedReceiver<(Place, Identity)>,
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
        let places: Vec<_> = batch.drain(..).map(|(place, _)| place).collect();
        shared.held.delivered(&places);
    }
}

/// Outcomes that wait on disk: until redis-server is back and has them.
async fn deliver_spooled(shared: Arc<Shared>) {
    let Some(spool) = &shared.spool else { return };
    loop {
        shared.spooled.notified().await;
        match spool.deliver(&shared.queue.link).await {
            Ok(delivered) => {
                tracing::info!(outcomes = delivered.len(), "delivered what waited on disk");
                shared.held.delivered(&delivered);
            }
            Err(error) => {
                tracing::error!(%error, "cannot deliver what waits on disk");
                tokio::time::sleep(BLOCK).await;
                shared.spooled.notify_one();
            }
        }
    }
}
