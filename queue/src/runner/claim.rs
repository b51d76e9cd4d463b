//! Claiming.
//!
//! A free slot first takes what is ready, in order of priority, then blocks until something comes:
//! nothing is polled. A read that blocks on several lanes may bring one job of each, more than
//! there are slots; what is too much goes back at once, so that it waits for nobody here.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use redis::streams::StreamReadReply;
use rhizome_model::{Code, Failure, Job, Outcome};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Shared;
use super::lease::{Hold, Lease};
use crate::backoff::{RECONNECT, jittered};
use crate::exclusive::Exclusive;
use crate::keys;
use crate::link::{BLOCK, Call, is_missing_group};
use crate::pending::{Content, Place, held_by};

/// The connection that blocks, and its name for `CLIENT UNBLOCK`.
struct Reader {
    connection: Exclusive,
    id: i64,
}

pub(super) async fn run(shared: Arc<Shared>, leases: mpsc::UnboundedSender<Lease>) {
    let mut claimer = Claimer { shared, leases, reader: None, look_first: true };
    let mut failures = 0;
    while !claimer.shared.drain.is_cancelled() {
        let error = match claimer.claim().await {
            Ok(()) => {
                failures = 0;
                continue;
            }
            Err(error) => error,
        };
        failures += 1;
        tracing::warn!(runner = %claimer.shared.options.name, %error, failures, "cannot claim; tries again");
        claimer.reader = None;
        claimer.look_first = true;
        claimer.shared.doubt.notify_one();
        tokio::select! {
            () = tokio::time::sleep(jittered(RECONNECT, failures)) => {}
            () = claimer.shared.drain.cancelled() => {}
        }
        if is_missing_group(&error)
            && let Err(error) = claimer.shared.open().await
        {
            tracing::warn!(%error, "cannot make the lanes anew");
        }
    }
}

struct Claimer {
    shared: Arc<Shared>,
    leases: mpsc::UnboundedSender<Lease>,
    reader: Option<Reader>,
    /// Whether something may be ready: false after a read that waited in vain.
    look_first: bool,
}

impl Claimer {
    /// One round: waits for a free slot, then for jobs.
    async fn claim(&mut self) -> RedisResult<()> {
        let shared = self.shared.clone();
        let mut free = tokio::select! {
            biased;
            () = shared.drain.cancelled() => return Ok(()),
            () = shared.doubt.notified() => return self.compare().await,
            permit = shared.slots.clone().acquire_owned() => match permit {
                Ok(permit) => permit,
                // Never closed.
                Err(_) => return Ok(()),
            },
        };
        while let Ok(more) = shared.slots.clone().try_acquire_owned() {
            free.merge(more);
        }
        if self.look_first {
            let ready = self.take_ready(free.num_permits()).await?;
            if !ready.is_empty() {
                return self.deliver(ready, free).await;
            }
        }
        let came = self.wait_for_jobs(free.num_permits()).await?;
        self.look_first = !came.is_empty();
        self.deliver(came, free).await
    }

    /// What is ready now, the most urgent first.
    async fn take_ready(&self, count: usize) -> RedisResult<Vec<(Place, Content)>> {
        let call = Call::new("claim")
            .keys(self.shared.lanes.iter().map(|l| keys::lane(l)))
            .arg(&self.shared.options.name)
            .num(count);
        // Asked once: an answer that is lost is found by the comparison that follows an error.
        let reply: StreamReadReply = self.shared.queue.link.call_once(&call).await?;
        Ok(self.entries(Some(reply)))
    }

    /// Blocks until something comes, for a while. Never dropped half-way: what redis-server has
    /// given must be taken, so a drain asks it to answer at once.
    async fn wait_for_jobs(&mut self, count: usize) -> RedisResult<Vec<(Place, Content)>> {
        let shared = self.shared.clone();
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => Reader::open(&shared).await?,
        };
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(keys::GROUP).arg(&shared.options.name);
        read.arg("COUNT").arg(count).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
        read.arg(shared.lanes.iter().map(|l| keys::lane(l)).collect::<Vec<_>>());
        read.arg(vec![">"; shared.lanes.len()]);
        let id = reader.id;
        let reply = {
            let mut unblock = redis::cmd("CLIENT");
            unblock.arg("UNBLOCK").arg(id);
            let answer = read.query_async::<Option<StreamReadReply>>(&mut reader.connection);
            tokio::pin!(answer);
            loop {
                let draining = async {
                    shared.drain.cancelled().await;
                    // Again until it answers: it may not have begun to block when it is first told.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                };
                tokio::select! {
                    biased;
                    reply = &mut answer => break reply?,
                    () = draining => {
                        shared.queue.link.once::<i64>(&unblock).await?;
                    }
                    () = shared.doubt.notified() => self.compare().await?,
                }
            }
        };
        self.reader = Some(reader);
        let entries = self.entries(reply);
        Ok(entries)
    }

    fn entries(&self, reply: Option<StreamReadReply>) -> Vec<(Place, Content)> {
        let lane_of =
            |key: &str| self.shared.lanes.iter().find(|name| keys::lane(name) == key).cloned();
        let lanes = reply.into_iter().flat_map(|r| r.keys);
        lanes
            .filter_map(|lane| Some((lane_of(&lane.key)?, lane.ids)))
            .flat_map(|(lane, entries)| {
                entries.into_iter().map(move |entry| {
                    let content = Content::of(&entry);
                    (Place { lane: lane.clone(), entry: entry.id }, content)
                })
            })
            .collect()
    }

    /// Makes leases of entries; gives back those for which no slot is free.
    async fn deliver(
        &mut self,
        entries: Vec<(Place, Content)>,
        mut free: OwnedSemaphorePermit,
    ) -> RedisResult<()> {
        let mut surplus = Vec::new();
        for (place, content) in entries {
            let draining = self.shared.drain.is_cancelled();
            match free.split(1) {
                Some(slot) if !draining => {
                    // A comparison may have found it before its answer came.
                    if let Some(unreadable) = self.lease(place, content, slot).await {
                        self.refuse(unreadable).await;
                    }
                }
                Some(_) | None => surplus.push((place, content.id)),
            }
        }
        self.shared.held.claim_answered();
        self.shelve(surplus).await;
        Ok(())
    }

    /// Hands a lease to the taker of jobs, unless the job's deadline is over; what cannot be read
    /// comes back.
    async fn lease(
        &self,
        place: Place,
        content: Content,
        slot: OwnedSemaphorePermit,
    ) -> Option<(Hold, Failure)> {
        let flag = self.shared.held.add(&place)?;
        let hold = Hold::new(self.shared.clone(), place, content, flag, slot);
        match serde_json::from_str::<Job>(hold.payload()) {
            Ok(job) => {
                if !self.is_in_time(&job, &hold).await {
                    return None;
                }
                // Nobody takes it any more only when the runner is gone, and then it is dropped.
                let _ = self.leases.send(Lease::new(job, hold));
                None
            }
            Err(error) => {
                let message = format!("the job cannot be read by this version of us: {error}");
                Some((hold, Failure::new(Code::Internal, message)))
            }
        }
    }

    async fn is_in_time(&self, job: &Job, hold: &Hold) -> bool {
        let Some(expires_at) = job.expires_at else { return true };
        match hold.may_begin(expires_at).await {
            Ok(begins) => begins,
            Err(error) => {
                tracing::warn!(job = %job.id, %error, "cannot see whether a job is in time; it goes back");
                false
            }
        }
    }

    async fn refuse(&self, (hold, failure): (Hold, Failure)) {
        tracing::error!(job = hold.id(), error = %failure, "ends a job that cannot be read");
        if let Err(error) = hold.finish(&Outcome::Failed(failure), None, &[]).await {
            tracing::warn!(%error, "could not end a job that cannot be read");
        }
    }

    async fn shelve(&self, surplus: Vec<(Place, String)>) {
        if surplus.is_empty() {
            return;
        }
        if let Err(error) = self.shared.give_back(&surplus).await {
            tracing::warn!(jobs = surplus.len(), %error, "could not give back surplus jobs");
            self.shared.doubt.notify_one();
        }
    }

    /// Compares what is held here with what redis-server says: what it gave us and we never heard
    /// of becomes a lease, what it took from us is lost.
    async fn compare(&self) -> RedisResult<()> {
        let before = self.shared.held.begin_comparison();
        let held = held_by(&self.shared.queue.link, &self.shared.options.name, &self.shared.lanes);
        let theirs = match held.await {
            Ok(theirs) => theirs,
            Err(crate::QueueError::Unavailable(error)) => return Err(error),
            Err(error) => {
                tracing::error!(%error, "cannot compare leases");
                return Ok(());
            }
        };
        let places: Vec<_> = theirs.iter().map(|(place, _)| place.clone()).collect();
        let unknown = self.shared.held.end_comparison(&before, &places);
        let mut surplus = Vec::new();
        for (place, content) in theirs {
            if !unknown.contains(&place) {
                continue;
            }
            let slot = self.shared.slots.clone().try_acquire_owned();
            match slot {
                Ok(slot) if !self.shared.drain.is_cancelled() => {
                    let unreadable = self.lease(place.clone(), content, slot).await;
                    self.shared.held.adopt(&place);
                    if let Some(unreadable) = unreadable {
                        self.refuse(unreadable).await;
                    }
                }
                Ok(_) | Err(_) => {
                    self.shared.held.adopt(&place);
                    surplus.push((place, content.id));
                }
            }
        }
        self.shelve(surplus).await;
        Ok(())
    }
}

impl Reader {
    async fn open(shared: &Shared) -> RedisResult<Self> {
        let mut connection = shared.queue.link.dedicated().await?;
        let mut id = redis::cmd("CLIENT");
        id.arg("ID");
        let id = id.query_async(&mut connection).await?;
        Ok(Self { connection, id })
    }
}
