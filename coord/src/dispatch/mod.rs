//! Bringing envelopes to nodes and following what becomes of them.
//!
//! ```text
//!   woken by a submission, a start, a sweep
//!     ├─▶ sender   (deployment, node)   order ─▶ POST ─▶ delivered | refused | later ─▶ order …
//!     └─▶ follower (node)               events ─▶ mirror;  now and then: look and compare
//! ```
//!
//! Both are made when they are needed, one per key, and end when there is nothing to do. All that
//! they know is in the store, so it does not matter when they die.

mod follower;
mod look;
mod sender;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use rhizome_model::{Backoff, Failure, NodeId};
use rhizome_service::Shutdown;
use tokio::sync::{Notify, Semaphore};

use crate::nodes::Nodes;
use crate::store::{Order, Store, TaskKey};
use workers::{Wake, Workers};

/// Envelopes on their way at a time; who waits for another attempt does not count.
const SENDS_AT_ONCE: usize = 64;
/// Tasks that wait for their node at a time. What is beyond waits in the store for a sweep.
const MAX_SENDERS: usize = 10_000;
const MAX_FOLLOWERS: usize = 10_000;
const SWEEP_EVERY: Duration = Duration::from_secs(5);
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));

#[derive(Clone)]
pub struct Dispatcher {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    nodes: Arc<Nodes>,
    shutdown: Shutdown,
    sends: Semaphore,
    senders: Workers<TaskKey>,
    followers: Workers<NodeId>,
}

impl Dispatcher {
    /// Takes up what the store says is under way, and from then on what it is woken for.
    pub fn start(store: Arc<Store>, nodes: Arc<Nodes>, shutdown: Shutdown) -> Self {
        let inner = Arc::new(Inner {
            store,
            nodes,
            shutdown,
            sends: Semaphore::new(SENDS_AT_ONCE),
            senders: Workers::new(MAX_SENDERS),
            followers: Workers::new(MAX_FOLLOWERS),
        });
        let sweeper = inner.clone();
        inner.spawn(async move { sweeper.sweep_forever().await });
        Self { inner }
    }

    /// These are in the store now, to be sent.
    pub fn send(&self, orders: impl IntoIterator<Item = Order>) {
        for order in orders {
            self.inner.send(order.key.clone(), Some(order));
        }
    }
}

impl Inner {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.shutdown.token.clone();
        self.shutdown.tracker.spawn(stopped.run_until_cancelled_owned(work));
    }

    /// What is to be sent stands in the store; whoever has it at hand gives it along.
    fn send(self: &Arc<Self>, key: TaskKey, order: Option<Order>) {
        // First, so that it listens by the time the node has something to say.
        self.follow(key.node);
        if let Wake::Start(work) = self.senders.wake(key) {
            let inner = self.clone();
            self.spawn(async move { sender::run(&inner, work, order).await });
        }
    }

    fn follow(self: &Arc<Self>, node: NodeId) {
        if let Wake::Start(work) = self.followers.start(node) {
            let inner = self.clone();
            self.spawn(async move { follower::run(&inner, work).await });
        }
    }

    async fn sweep_forever(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        loop {
            ticks.tick().await;
            if let Err(error) = self.sweep().await {
                tracing::error!(error = %Failure::from(error),
                    "the tasks under way cannot be read; it is tried again");
            }
        }
    }

    async fn sweep(self: &Arc<Self>) -> crate::store::Result<()> {
        for node in self.store.nodes_in_use().await? {
            self.follow(node);
        }
        for key in self.store.undelivered(MAX_SENDERS).await? {
            if !self.senders.is_running(&key) {
                self.send(key, None);
            }
        }
        Ok(())
    }
}

/// Sleeps, or less if the bell rings.
async fn rest(time: Duration, bell: &Notify) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = bell.notified() => {}
    }
}
