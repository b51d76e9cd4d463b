//! What a runner holds, as the lanes' groups know it; and giving it back.

use redis::streams::{StreamPendingCountReply, StreamRangeReply};
use rhizome_model::Outcome;

use crate::link::{Call, Link};
use crate::record::to_json;
use crate::{BATCH, QueueError, jobs, keys};

/// An entry of a lane, given to a runner: what a lease is to redis-server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The lane's name.
    pub(crate) lane: String,
    pub(crate) entry: String,
}

/// What stands in an entry.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) id: String,
    /// Attempts that counted before this one.
    pub(crate) before: u32,
    pub(crate) payload: String,
}

impl Content {
    pub(crate) fn of(entry: &redis::streams::StreamId) -> Self {
        Self {
            id: entry.get("i").unwrap_or_default(),
            before: entry.get("a").unwrap_or_default(),
            payload: entry.get("j").unwrap_or_default(),
        }
    }
}

/// Whether the attempt of a lease that is given back counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    /// The runner died with it.
    Yes,
    /// It was not really tried.
    No,
}

/// Up to 256 entries of these lanes that `runner` holds.
pub(crate) async fn held_by(
    link: &Link,
    runner: &str,
    lanes: &[String],
) -> Result<Vec<(Place, Content)>, QueueError> {
    if lanes.is_empty() {
        return Ok(Vec::new());
    }
    let mut look = redis::pipe();
    for lane in lanes {
        look.cmd("XPENDING").arg(keys::lane(lane)).arg(keys::GROUP);
        look.arg("-").arg("+").arg(BATCH).arg(runner);
    }
    let pending: Vec<StreamPendingCountReply> = link.query_all(&look).await?;
    let held = lanes.iter().zip(pending).flat_map(|(lane, entries)| {
        let place = |entry: String| Place { lane: lane.clone(), entry };
        entries.ids.into_iter().map(move |e| place(e.id))
    });
    let held: Vec<_> = held.take(BATCH).collect();
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let mut read = redis::pipe();
    for place in &held {
        read.cmd("XRANGE").arg(keys::lane(&place.lane)).arg(&place.entry).arg(&place.entry);
    }
    let contents: Vec<StreamRangeReply> = link.query_all(&read).await?;
    let with_content = |(place, found): (Place, StreamRangeReply)| {
        found.ids.first().map(|entry| (place, Content::of(entry)))
    };
    Ok(held.into_iter().zip(contents).filter_map(with_content).collect())
}

/// Gives leases of `owner` back; those that are no longer its are left alone. How many were given.
pub(crate) async fn give_back(
    link: &Link,
    owner: &str,
    counts: Counts,
    leases: &[(Place, String)],
) -> Result<u64, QueueError> {
    let mut given = 0;
    for some in leases.chunks(BATCH) {
        let mut call = Call::new("give_back")
            .key(keys::DONE)
            .key(keys::COUNTERS)
            .arg(match counts {
                Counts::Yes => "died",
                Counts::No => "released",
            })
            .arg(owner)
            .arg(to_json(&Outcome::Cancelled)?)
            .arg(to_json(&jobs::quarantined())?);
        for (place, id) in some {
            let queue = keys::queue_of(&place.lane);
            let again = keys::lane_name(queue, keys::AGAIN);
            call = call
                .key(keys::record_of(id))
                .key(keys::lane(&place.lane))
                .key(keys::lane(&again))
                .key(keys::dead(queue))
                .args([&place.entry, id])
                .args([queue, &again]);
        }
        given += link.call::<u64>(&call).await?;
    }
    Ok(given)
}
