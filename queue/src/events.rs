//! Events of deployments: a bounded stream, followed by its ids.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::Stream;
use redis::RedisResult;
use redis::streams::{StreamId, StreamReadReply};
use rhizome_model::Event;

use crate::backoff::{RECONNECT, jittered};
use crate::exclusive::Exclusive;
use crate::link::{BLOCK, Call, Link};
use crate::record::to_json;
use crate::{BATCH, Queue, QueueError, keys};

/// Events that one read takes.
const READ: usize = 500;

impl Queue {
    pub async fn publish(&self, events: &[Event]) -> Result<(), QueueError> {
        for some in events.chunks(BATCH) {
            let call = Call::new("publish").key(keys::EVENTS).key(keys::once(uuid::Uuid::new_v4()));
            self.link.call::<()>(&with_events(call, some)?).await?;
        }
        Ok(())
    }

    /// The events after the one with the id `after`; none: all that are kept. Never ends; waits
    /// through restarts of redis-server. Says [`QueueError::Trimmed`] once where some are missing.
    pub fn follow(
        &self,
        after: Option<String>,
    ) -> impl Stream<Item = Result<(String, Event), QueueError>> + Send + use<> {
        let follower = Follower {
            link: self.link.clone(),
            connection: None,
            checks: after.is_some(),
            last: after.unwrap_or_else(|| "0-0".to_owned()),
            ready: VecDeque::new(),
            failures: 0,
        };
        futures_util::stream::unfold(follower, |mut follower| async move {
            let item = follower.next().await;
            Some((item, follower))
        })
    }

    /// The id of the newest event; what is published later comes after it.
    pub async fn last_event_id(&self) -> Result<String, QueueError> {
        let mut newest = redis::cmd("XREVRANGE");
        newest.arg(keys::EVENTS).arg("+").arg("-").arg("COUNT").arg(1);
        let newest: redis::streams::StreamRangeReply = self.link.query(&newest).await?;
        Ok(newest.ids.into_iter().next().map_or_else(|| "0-0".to_owned(), |entry| entry.id))
    }
}

/// Appends events as the functions read them.
pub(crate) fn with_events(call: Call, events: &[Event]) -> Result<Call, QueueError> {
    let mut call = call.num(events.len());
    for event in events {
        call = call.arg(to_json(event)?);
    }
    Ok(call)
}

struct Follower {
    link: Arc<Link>,
    connection: Option<Exclusive>,
    /// Whether to see first that nothing after `last` is gone.
    checks: bool,
    last: String,
    ready: VecDeque<StreamId>,
    failures: u32,
}

impl Follower {
    async fn next(&mut self) -> Result<(String, Event), QueueError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                self.last.clone_from(&entry.id);
                let event: String = entry.get("e").unwrap_or_default();
                let event = serde_json::from_str(&event)
                    .map_err(|e| QueueError::corrupt(format!("event {}", entry.id), e))?;
                return Ok((entry.id, event));
            }
            match self.read().await {
                Ok(false) => {}
                Ok(true) => return Err(QueueError::Trimmed),
                Err(error) => {
                    self.connection = None;
                    // While we were away more may have been published than is kept.
                    self.checks = self.last != "0-0";
                    self.failures += 1;
                    if !crate::link::is_transient(&error) {
                        return Err(QueueError::Unavailable(error));
                    }
                    tracing::debug!(%error, "lost sight of events; connects again");
                    tokio::time::sleep(jittered(RECONNECT, self.failures)).await;
                }
            }
        }
    }

    /// Reads on; true when some of what should follow is no longer kept.
    async fn read(&mut self) -> RedisResult<bool> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.link.dedicated().await?),
        };
        if std::mem::take(&mut self.checks) && is_trimmed(connection, &self.last).await? {
            "0-0".clone_into(&mut self.last);
            return Ok(true);
        }
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(READ).arg("BLOCK").arg(BLOCK.as_millis() as u64);
        read.arg("STREAMS").arg(keys::EVENTS).arg(&self.last);
        let news: Option<StreamReadReply> = read.query_async(connection).await?;
        self.failures = 0;
        self.ready.extend(news.into_iter().flat_map(|n| n.keys).flat_map(|k| k.ids));
        Ok(false)
    }
}

/// Whether entries after `last` are gone: it is older than the oldest that is kept, and not all
/// that ever were are kept.
async fn is_trimmed(connection: &mut Exclusive, last: &str) -> RedisResult<bool> {
    let mut look = redis::pipe();
    look.cmd("XRANGE").arg(keys::EVENTS).arg("-").arg("+").arg("COUNT").arg(1);
    look.cmd("XLEN").arg(keys::EVENTS);
    let (oldest, kept): (redis::streams::StreamRangeReply, u64) =
        look.query_async(connection).await?;
    let Some(oldest) = oldest.ids.first() else { return Ok(false) };
    if id_parts(last) >= id_parts(&oldest.id) {
        return Ok(false);
    }
    let mut info = redis::cmd("XINFO");
    info.arg("STREAM").arg(keys::EVENTS);
    let info: std::collections::HashMap<String, redis::Value> =
        info.query_async(connection).await?;
    let added = match info.get("entries-added") {
        Some(redis::Value::Int(added)) => u64::try_from(*added).unwrap_or_default(),
        Some(_) | None => u64::MAX,
    };
    Ok(added > kept)
}

/// A stream id as two numbers, so that ids compare as redis-server compares them.
pub(crate) fn id_parts(id: &str) -> (u64, u64) {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    (ms.parse().unwrap_or_default(), seq.parse().unwrap_or_default())
}
