//! What a runner holds, as the lanes' groups know it; and giving it back.

use std::sync::Arc;

use redis::Value;
use redis::streams::StreamPendingCountReply;
use rhizome_model::Outcome;

use crate::link::{Call, Link};
use crate::member::{Identity, Places};
use crate::record::to_json;
use crate::stored::{self, Content};
use crate::{BATCH, QueueError, jobs, keys};

/// An entry of a lane, given to a runner: what a lease is to redis-server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The lane's name.
    pub(crate) lane: Arc<str>,
    pub(crate) entry: Arc<str>,
}

/// Whether the attempt of a lease that is given back counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    /// The runner died with it.
    Yes,
    /// It was not really tried.
    No,
}

/// The lanes of these queues that there are.
pub(crate) async fn lanes_of(link: &Link, queues: &[String]) -> Result<Vec<String>, QueueError> {
    let mut list = redis::cmd("SMEMBERS");
    list.arg(keys::LANES);
    let mut lanes: Vec<String> = link.query(&list).await?;
    lanes.retain(|lane| queues.iter().any(|queue| queue == keys::queue_of(lane)));
    lanes.sort_unstable();
    Ok(lanes)
}

/// Far more than a runner has slots.
const ALL: usize = 1_000_000;

/// All entries of these lanes that `runner` holds.
pub(crate) async fn held_by(
    link: &Link,
    runner: &str,
    lanes: &[String],
) -> Result<Vec<(Place, Content)>, QueueError> {
    let mut held = Vec::new();
    for some in lanes.chunks(BATCH) {
        let mut look = redis::pipe();
        for lane in some {
            look.cmd("XPENDING").arg(keys::lane(lane)).arg(keys::GROUP);
            look.arg("-").arg("+").arg(ALL).arg(runner);
        }
        // A lane that was forgotten meanwhile holds nothing.
        let pending: Vec<redis::RedisResult<StreamPendingCountReply>> =
            link.query_all(look.ignore_errors()).await?;
        for (lane, entries) in some.iter().zip(pending) {
            let entries = entries.into_iter().flat_map(|p| p.ids);
            held.extend(entries.map(|e| Place { lane: lane.as_str().into(), entry: e.id.into() }));
        }
    }
    let mut found = Vec::with_capacity(held.len());
    for some in held.chunks(BATCH) {
        let mut read = redis::pipe();
        for place in some {
            read.cmd("XRANGE").arg(keys::lane(&place.lane)).arg(&*place.entry).arg(&*place.entry);
        }
        let contents: Vec<Vec<Value>> = link.query_all(&read).await?;
        for (place, mut entries) in some.iter().zip(contents) {
            let content = entries.pop().and_then(stored::entry);
            found.extend(content.map(|(_, content)| (place.clone(), content)));
        }
    }
    Ok(found)
}

/// Gives leases of `owner` back; those that are no longer its are left alone. How many were given.
pub(crate) async fn give_back(
    link: &Link,
    owner: &str,
    counts: Counts,
    leases: &[(Place, Identity)],
) -> Result<u64, QueueError> {
    let mut given = 0;
    for some in leases.chunks(BATCH) {
        let call = Call::shared("give_back")
            .arg(match counts {
                Counts::Yes => "died",
                Counts::No => "released",
            })
            .arg(owner)
            .arg(to_json(&Outcome::Cancelled)?)
            .arg(to_json(&jobs::quarantined())?);
        let again: Vec<_> = some.iter().map(|(_, identity)| identity.again()).collect();
        let places = Places::of(again.iter().map(String::as_str));
        let mut call = places.write(call);
        for ((place, identity), again) in some.iter().zip(&again) {
            call = identity.write(call).key(keys::lane(&place.lane));
            call = call.num(places.place(again)).num(identity.most);
            call = call.arg(&*place.entry);
        }
        given += link.call::<u64>(&call).await?;
    }
    Ok(given)
}
