//! News of jobs that ended: one follower of the `done` stream for all who wait in this process.
//!
//! ```text
//!   wait: register ─▶ look at the record ─▶ not ended: sleep ─▶ woken: look again
//!   follower: (re)connect ─▶ take position ─▶ wake all ─▶ read on, wake whom it names
//! ```
//!
//! Who registers before it looks cannot miss the end: it was there when it looked, or the follower
//! reads it after its position, or the follower wakes everybody when it takes one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use redis::streams::{StreamRangeReply, StreamReadReply};
use rhizome_model::{JobId, Outcome};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backoff::{RECONNECT, jittered};
use crate::link::{BLOCK, Link};
use crate::record::outcome_in;
use crate::{Queue, QueueError, keys};

/// Ended jobs that one read takes; fewer than the stream keeps, so that a reader who falls behind
/// as far as to miss something knows it by a full read.
const NEWS: usize = 500;

pub(crate) struct News {
    link: Arc<Link>,
    waiters: Arc<Waiters>,
    follower: OnceLock<DropGuard>,
}

#[derive(Default)]
struct Waiters(Mutex<HashMap<String, Weak<Notify>>>);

impl News {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link, waiters: Arc::default(), follower: OnceLock::new() }
    }

    /// Woken when the job has ended, and sometimes before.
    fn register(&self, id: JobId) -> Arc<Notify> {
        self.follower.get_or_init(|| {
            let stop = CancellationToken::new();
            let (link, waiters) = (self.link.clone(), self.waiters.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(follow(link, waiters)));
            stop.drop_guard()
        });
        let mut waiters = self.waiters.locked();
        let known = waiters.get(&id.to_string()).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            // Now and then, so that many who wait cost no more each than few.
            if waiters.len() == waiters.capacity() {
                waiters.retain(|_, waiter| waiter.strong_count() > 0);
            }
            let notify = Arc::new(Notify::new());
            waiters.insert(id.to_string(), Arc::downgrade(&notify));
            notify
        })
    }
}

impl Waiters {
    fn locked(&self) -> MutexGuard<'_, HashMap<String, Weak<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, id: &str) {
        if let Some(waiter) = self.locked().get(id).and_then(Weak::upgrade) {
            waiter.notify_waiters();
        }
    }

    fn wake_all(&self) {
        for waiter in self.locked().values().filter_map(Weak::upgrade) {
            waiter.notify_waiters();
        }
    }
}

impl Queue {
    /// Waits until the job has ended; through restarts of redis-server, for as long as it takes.
    pub async fn wait(&self, id: JobId) -> Result<Outcome, QueueError> {
        let notify = self.news.register(id);
        loop {
            let woken = notify.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            match self.outcome(id).await {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => woken.await,
                Err(QueueError::Unavailable(error)) if crate::link::is_transient(&error) => {
                    tracing::warn!(job = %id, %error, "waits for redis-server to come back");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// How a job ended; none while it has not.
    async fn outcome(&self, id: JobId) -> Result<Option<Outcome>, QueueError> {
        let mut get = redis::cmd("GET");
        get.arg(keys::record(id));
        let text: Option<String> = self.link.query(&get).await?;
        let text = text.ok_or(QueueError::NoSuchJob(id))?;
        outcome_in(&text).map_err(|e| QueueError::corrupt(format!("job {id}"), e))
    }
}

async fn follow(link: Arc<Link>, waiters: Arc<Waiters>) {
    let mut failures = 0;
    loop {
        let error = match follow_once(&link, &waiters, &mut failures).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        failures += 1;
        tracing::debug!(%error, failures, "lost sight of ended jobs; connects again");
        tokio::time::sleep(jittered(RECONNECT, failures)).await;
    }
}

async fn follow_once(
    link: &Link,
    waiters: &Waiters,
    failures: &mut u32,
) -> redis::RedisResult<std::convert::Infallible> {
    let mut connection = link.dedicated().await?;
    let mut last = last_id(&mut connection, keys::DONE).await?;
    *failures = 0;
    waiters.wake_all();
    loop {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(NEWS).arg("BLOCK").arg(BLOCK.as_millis() as u64);
        read.arg("STREAMS").arg(keys::DONE).arg(&last);
        let news: Option<StreamReadReply> = read.query_async(&mut connection).await?;
        let ended: Vec<_> = news.into_iter().flat_map(|n| n.keys).flat_map(|k| k.ids).collect();
        // So much news that older news may have been dropped before we read it.
        if ended.len() == NEWS {
            waiters.wake_all();
        }
        for entry in ended {
            let ids = entry.get::<String>("i").unwrap_or_default();
            ids.split(' ').for_each(|id| waiters.wake(id));
            last = entry.id;
        }
    }
}

/// The id of a stream's newest entry.
pub(crate) async fn last_id(
    connection: &mut impl redis::aio::ConnectionLike,
    stream: &str,
) -> redis::RedisResult<String> {
    let mut newest = redis::cmd("XREVRANGE");
    newest.arg(stream).arg("+").arg("-").arg("COUNT").arg(1);
    let newest: StreamRangeReply = newest.query_async(connection).await?;
    Ok(newest.ids.into_iter().next().map_or_else(|| "0-0".to_owned(), |entry| entry.id))
}
