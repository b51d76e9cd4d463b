//! Claiming.
//!
//! A free slot first takes what may start, account by account in turn, then blocks on the ready lanes
//! until something comes. A read that blocks on several of them may bring one job of each, more than
//! there are slots; what is too much goes back at once, so that it waits for nobody here.

mod grant;

use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult, Value};
use rhizome_model::{Code, Failure, Job, Outcome};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use self::grant::Grant;
use super::Shared;
use super::lease::{Hold, Lease};
use crate::backoff::{RECONNECT, jittered};
use crate::exclusive::Exclusive;
use crate::jobs::identity;
use crate::link::{BLOCK, Call, is_missing_group};
use crate::member::{Identity, with_queue};
use crate::pending::{Place, held_by, lanes_of};
use crate::stored::{self, Content};
use crate::{BATCH, keys};

/// Claims in a row for accounts that the one before had not known.
const ROUNDS: usize = 3;
/// Leases that are made in a row: those who work on the first of a large claim begin, and end, while
/// the last are made, so that redis-server has something to do.
const UNINTERRUPTED: usize = 32;

/// The claimer's own connection, where nothing else stands in line, and its name for `CLIENT UNBLOCK`.
struct Reader {
    connection: Exclusive,
    id: i64,
}

pub(super) async fn run(shared: Arc<Shared>, leases: mpsc::UnboundedSender<Lease>) {
    let mut claimer = Claimer::new(shared, leases);
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

/// A runner that is drained claims no more; what it still has can be lost all the same.
pub(super) async fn watch_drained(shared: Arc<Shared>) {
    shared.drain.cancelled().await;
    // What this one finds goes back: nobody takes it.
    let (nobody, _) = mpsc::unbounded_channel();
    let claimer = Claimer::new(shared, nobody);
    let mut failures = 0;
    loop {
        claimer.shared.doubt.notified().await;
        match claimer.compare().await {
            Ok(()) => failures = 0,
            Err(error) => {
                failures += 1;
                tracing::debug!(%error, failures, "cannot compare leases; tries again");
                tokio::time::sleep(jittered(RECONNECT, failures)).await;
                claimer.shared.doubt.notify_one();
            }
        }
    }
}

struct Claimer {
    shared: Arc<Shared>,
    leases: mpsc::UnboundedSender<Lease>,
    reader: Option<Reader>,
    /// Whether something may wait for its turn: false after a look in vain.
    look_first: bool,
    /// Per queue, the accounts that waited for their turn at the last look.
    lines: Vec<Vec<String>>,
    /// Accounts in whose lanes there was less than was granted.
    short: Vec<String>,
    /// Until the next look, when nothing comes.
    pause: Duration,
}

impl Claimer {
    fn new(shared: Arc<Shared>, leases: mpsc::UnboundedSender<Lease>) -> Self {
        let lines = vec![Vec::new(); shared.options.queues.len()];
        Self {
            shared,
            leases,
            reader: None,
            look_first: true,
            lines,
            short: Vec::new(),
            pause: BLOCK,
        }
    }

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
        // Those who are about to end first: a claim is cheaper the more it brings.
        tokio::task::yield_now().await;
        while let Ok(more) = shared.slots.clone().try_acquire_owned() {
            free.merge(more);
        }
        if self.reader.is_none() {
            self.reader = Some(Reader::open(&shared).await?);
        }
        let given = if std::mem::take(&mut self.look_first) {
            self.take_turns(&mut free).await?
        } else {
            0
        };
        if given == 0 {
            let came = self.wait_for_jobs(free.num_permits().min(BATCH)).await?;
            self.deliver(came, &mut free).await;
        }
        self.look_first = true;
        self.shared.held.claim_answered();
        Ok(())
    }

    /// What may start now, account by account in turn. How many jobs.
    async fn take_turns(&mut self, free: &mut OwnedSemaphorePermit) -> RedisResult<usize> {
        let (count, mut given) = (free.num_permits(), 0);
        for _ in 0..ROUNDS {
            let call = self.claim_call(count - given);
            // Asked once: an answer that is lost is found by the comparison that follows an error.
            let link = &self.shared.queue.link;
            let reader = &mut self.reader.as_mut().ok_or_else(no_reader)?.connection;
            let reply: Vec<Value> = link.call_once_on(reader, &call).await?;
            let mut reply = reply.into_iter();
            self.pause = match reply.next() {
                Some(Value::Int(ms)) => u64::try_from(ms).map_or(BLOCK, Duration::from_millis),
                Some(_) | None => BLOCK,
            };
            let grants: Vec<Grant> = reply
                .next()
                .map(array)
                .unwrap_or_default()
                .into_iter()
                .filter_map(Grant::read)
                .collect();
            let lines: Vec<Vec<String>> =
                reply.by_ref().take(self.lines.len()).map(words).collect();
            let taken: Vec<_> = reply.filter_map(stored::entries).flat_map(placed).collect();
            given += taken.len();
            self.deliver(taken, free).await;
            let known = std::mem::replace(&mut self.lines, lines);
            self.short.clear();
            for grant in grants {
                given += self.read(grant, free).await?;
            }
            let grew = self.lines.iter().zip(known).any(|(now, then)| {
                let mut now = now.iter();
                now.any(|account| !then.contains(account))
            });
            if !grew || given >= count {
                break;
            }
        }
        Ok(given)
    }

    fn claim_call(&self, count: usize) -> Call {
        let queues = &self.shared.options.queues;
        let mut call = Call::shared("claim").arg(&self.shared.options.name);
        call = call.num(count).num(queues.len());
        for (queue, line) in queues.iter().zip(&self.lines) {
            call = with_queue(call, queue).arg(queue).num(line.len());
            for account in line {
                let lanes = (0..keys::LANES_OF_ACCOUNT).map(|p| keys::lane_of(queue, account, p));
                call = call.keys(lanes.map(|lane| keys::lane(&lane)));
                call = call.arg(account).num(u8::from(self.short.contains(account)));
            }
        }
        call
    }

    /// Blocks until something comes, for a while. Never dropped half-way: what redis-server has
    /// given must be taken, so whoever has other news for us asks it to answer at once.
    async fn wait_for_jobs(&mut self, count: usize) -> RedisResult<Vec<(Place, Content)>> {
        let shared = self.shared.clone();
        let mut reader = self.reader.take().ok_or_else(no_reader)?;
        let pause = self.pause.min(BLOCK).as_millis().max(1);
        let lanes = shared.options.queues.iter().map(|q| keys::lane(&keys::ready(q)));
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(keys::GROUP).arg(&shared.options.name);
        read.arg("COUNT").arg(count).arg("BLOCK").arg(pause.to_string()).arg("STREAMS");
        read.arg(lanes.collect::<Vec<_>>());
        read.arg(vec![">"; shared.options.queues.len()]);
        let id = reader.id;
        let reply = {
            let mut unblock = redis::cmd("CLIENT");
            unblock.arg("UNBLOCK").arg(id);
            let answer = read.query_async::<Value>(&mut reader.connection);
            tokio::pin!(answer);
            let mut called = false;
            loop {
                let call = async {
                    if !called {
                        tokio::select! {
                            () = shared.drain.cancelled() => {}
                            () = shared.look.notified() => {}
                        }
                    }
                    // Again until it answers: it may not have begun to block when it is first told.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                };
                tokio::select! {
                    biased;
                    reply = &mut answer => break reply?,
                    () = call => {
                        called = true;
                        shared.queue.link.once::<i64>(&unblock).await?;
                    }
                    () = shared.doubt.notified() => self.compare().await?,
                }
            }
        };
        self.reader = Some(reader);
        Ok(array(reply).into_iter().filter_map(stored::entries).flat_map(placed).collect())
    }

    /// Makes leases of entries; gives back those for which no slot is free.
    async fn deliver(&self, entries: Vec<(Place, Content)>, free: &mut OwnedSemaphorePermit) {
        let mut surplus = Vec::new();
        for (n, (place, content)) in entries.into_iter().enumerate() {
            if n % UNINTERRUPTED == UNINTERRUPTED - 1 {
                tokio::task::yield_now().await;
            }
            let draining = self.shared.drain.is_cancelled();
            match free.split(1) {
                Some(slot) if !draining => {
                    // A comparison may have found it before its answer came.
                    if let Some(unreadable) = self.lease(place, content, slot).await {
                        self.refuse(unreadable).await;
                    }
                }
                Some(_) | None => surplus.push(unbegun((place, content))),
            }
        }
        self.shelve(surplus).await;
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
        match content.job() {
            Ok(job) => {
                let identity = Identity::of(&job);
                let hold = Hold::new(self.shared.clone(), place, identity, content, flag, slot);
                if !self.is_in_time(&job, &hold).await {
                    return None;
                }
                // Nobody takes it any more only when the runner is gone, and then it is dropped.
                let _ = self.leases.send(Lease::new(job, hold));
                None
            }
            Err(error) => {
                let identity = identity(&content, &place.lane);
                let hold = Hold::new(self.shared.clone(), place, identity, content, flag, slot);
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
                self.shelve(vec![hold.unbegun()]).await;
                false
            }
        }
    }

    async fn refuse(&self, (hold, failure): (Hold, Failure)) {
        tracing::error!(job = %hold.id(), error = %failure, "ends a job that cannot be read");
        if let Err(error) = hold.finish(&Outcome::Failed(failure), None, &[]).await {
            tracing::warn!(%error, "could not end a job that cannot be read");
        }
    }

    async fn shelve(&self, surplus: Vec<(Place, Identity)>) {
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
        let theirs = match self.theirs().await {
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
                    surplus.push(unbegun((place, content)));
                }
            }
        }
        self.shelve(surplus).await;
        Ok(())
    }

    /// What redis-server says that we hold.
    async fn theirs(&self) -> Result<Vec<(Place, Content)>, crate::QueueError> {
        let link = &self.shared.queue.link;
        let lanes = lanes_of(link, &self.shared.options.queues).await?;
        held_by(link, &self.shared.options.name, &lanes).await
    }
}

/// What is given back of a job that no lease was made for.
fn unbegun((place, content): (Place, Content)) -> (Place, Identity) {
    let identity = identity(&content, &place.lane);
    (place, identity)
}

/// It is opened before every round, and taken away only by an error.
fn no_reader() -> RedisError {
    RedisError::from((ErrorKind::Io, "the claimer has no connection"))
}

fn words(value: Value) -> Vec<String> {
    array(value).into_iter().filter_map(stored::text).collect()
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

/// The entries of a lane, each with where it is.
fn placed(
    (key, entries): (String, Vec<(String, Content)>),
) -> impl Iterator<Item = (Place, Content)> {
    let lane: Arc<str> = keys::lane_name(&key).into();
    entries
        .into_iter()
        .map(move |(entry, content)| (Place { lane: lane.clone(), entry: entry.into() }, content))
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
