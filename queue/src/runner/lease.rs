//! A lease: one attempt of one job, and all that it may write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::FromRedisValue;
use rhizome_model::api::OutputChunk;
use rhizome_model::{DeploymentId, Event, Failure, Job, JobId, Name, Outcome, Shortfall, Task};
use serde_json::Value;
use tokio::sync::{Mutex, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::ending::{Ending, state_of};
use super::held::{CancelReason, Flag};
use crate::allowance::Beyond;
use crate::events::with_events;
use crate::link::{Call, is_transient};
use crate::member::Identity;
use crate::pending::{Counts, Place, give_back};
use crate::record::to_json;
use crate::stored::Content;
use crate::tasks::{free, task_keys, with_status, with_task};
use crate::{QueueError, jobs, keys};

/// redis-server may be away for this long before outcomes go to disk.
const BEFORE_SPOOLING: Duration = Duration::from_secs(1);
/// Or be there, and answer nothing: longer than most fsyncs take.
const NO_ANSWER: Duration = Duration::from_secs(2);

/// What becomes of a job that is to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    Later,
    /// It had its last attempt, or was cancelled: it has ended.
    Exhausted,
}

/// One attempt of a job. Whoever drops it without an end was interrupted: the job goes back to its
/// queue, and the attempt counts.
///
/// Its writes happen one after the other, in the order in which they are asked for. All of them
/// answer [`QueueError::Fenced`] once the lease is lost.
pub struct Lease {
    pub job: Job,
    /// From 1.
    pub attempt: u32,
    hold: Hold,
}

/// What the group gave us, and the right to write.
pub(super) struct Hold {
    identity: Identity,
    place: Place,
    /// From 1.
    attempt: u32,
    /// Whether more is known of the job than its record.
    more: AtomicBool,
    /// The job as it is stored: its record keeps it.
    payload: Arc<str>,
    flag: Arc<Flag>,
    shared: Arc<Shared>,
    /// Writes so far: redis-server knows a repeated one by its number.
    writes: Mutex<u64>,
    over: AtomicBool,
    _slot: OwnedSemaphorePermit,
}

impl Lease {
    pub(super) fn new(job: Job, hold: Hold) -> Self {
        Self { job, attempt: hold.attempt, hold }
    }

    /// What tells this attempt from every other of the node.
    pub fn token(&self) -> &str {
        &self.hold.place.entry
    }

    /// Cancelled when the work should stop; [`Lease::cancel_reason`] says why.
    pub fn cancelled(&self) -> CancellationToken {
        self.hold.flag.token()
    }

    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.hold.flag.reason()
    }

    pub async fn finish(&self, outcome: &Outcome) -> Result<(), QueueError> {
        self.finish_with(outcome, None, &[]).await
    }

    /// Ends the job, writes the task and appends the events in one step.
    pub async fn finish_with(
        &self,
        outcome: &Outcome,
        task: Option<&Task>,
        events: &[Event],
    ) -> Result<(), QueueError> {
        self.hold.finish(outcome, task, events).await
    }

    /// Writes the task and appends the events. Where more is reserved than before it must be free.
    pub async fn update(&self, task: &Task, events: &[Event]) -> Result<(), QueueError> {
        let mut writes = self.hold.writes.lock().await;
        *writes += 1;
        let call = self.hold.write("update").key(keys::EVENTS).keys(task_keys(&task.deployment));
        let call = call.args(self.hold.signature()).num(*writes);
        let call = with_events(with_task(call, Some(task))?, events)?;
        let reply: Vec<String> = self.hold.shared.queue.link.call(&call).await?;
        self.hold.judge(&reply, Some(task))
    }

    /// One more write of this lease, by a function that takes the shared keys.
    pub(crate) async fn write_shared(
        &self,
        function: &'static str,
        task: Option<&Task>,
        with: impl FnOnce(Call) -> Result<Call, QueueError>,
    ) -> Result<(), QueueError> {
        let mut writes = self.hold.writes.lock().await;
        *writes += 1;
        let call = self.hold.write_with(Call::shared(function));
        let call = with(call.args(self.hold.signature()).num(*writes))?;
        let reply: Vec<String> = self.hold.shared.queue.link.call(&call).await?;
        self.hold.judge(&reply, task)
    }

    /// Notes a resource's status, for as long as its task is there, and appends the events.
    pub async fn set_status(
        &self,
        id: &DeploymentId,
        resource: &Name,
        status: Option<&Value>,
        events: &[Event],
    ) -> Result<(), QueueError> {
        let mut writes = self.hold.writes.lock().await;
        *writes += 1;
        let call = self
            .hold
            .write("lease_status")
            .key(keys::EVENTS)
            .key(keys::task(id))
            .key(keys::statuses(id))
            .args(self.hold.signature())
            .num(*writes);
        let call = with_events(with_status(call, resource, status)?, events)?;
        let reply: String = self.hold.shared.queue.link.call(&call).await?;
        self.hold.judge(&[reply], None)
    }

    /// Appends to the job's output.
    pub async fn print(&self, chunk: &OutputChunk) -> Result<(), QueueError> {
        let mut writes = self.hold.writes.lock().await;
        *writes += 1;
        let call = self
            .hold
            .write("print_output")
            .key(keys::output(self.job.id))
            .args(self.hold.signature())
            .num(*writes)
            .arg(to_json(chunk)?);
        let reply: String = self.hold.shared.queue.link.call(&call).await?;
        self.hold.judge(&[reply], None)
    }

    /// Says how far the work is; what was said before is forgotten.
    pub async fn progress(&self, value: &Value) -> Result<(), QueueError> {
        let _writes = self.hold.writes.lock().await;
        let call = self.hold.write("progress").args(self.hold.signature()).arg(to_json(value)?);
        let reply: String = self.hold.shared.queue.link.call(&call).await?;
        self.hold.judge(&[reply], None)
    }

    /// The attempt failed; there will be another after the pause, if there are any left. The
    /// events are appended only then.
    pub async fn retry(
        &self,
        failure: &Failure,
        after: Duration,
        events: &[Event],
    ) -> Result<Retried, QueueError> {
        let _writes = self.hold.writes.lock().await;
        let call = self
            .hold
            .end_call("retry")
            .key(keys::EVENTS)
            .args(self.hold.signature())
            .num(self.hold.identity.most)
            .num(after.as_millis())
            .arg(to_json(failure)?)
            .arg(to_json(&Outcome::Failed(failure.clone()))?)
            .arg(to_json(&Outcome::Cancelled)?);
        let call = with_events(call, events)?;
        let reply = self
            .hold
            .shared
            .deliver::<String>(&call, std::slice::from_ref(&self.hold.place))
            .await?;
        let retried = match reply.as_deref() {
            // Redis is away; should there be no attempt left, it will have ended.
            None | Some("later") => Retried::Later,
            Some("exhausted") => Retried::Exhausted,
            Some(other) => {
                return self.hold.judge(&[other.to_owned()], None).map(|()| Retried::Later);
            }
        };
        self.hold.end();
        Ok(retried)
    }

    /// Gives the job back as if it had not been tried.
    pub async fn release(&self) -> Result<(), QueueError> {
        let _writes = self.hold.writes.lock().await;
        let lease = [(self.hold.place.clone(), self.hold.identity.clone())];
        self.hold.shared.give_back(&lease).await?;
        self.hold.end();
        Ok(())
    }

    /// Forgets it here: whoever calls gives back all that redis-server says we hold.
    pub(super) fn shelve(self) {
        self.hold.end();
    }
}

impl Hold {
    pub(super) fn new(
        shared: Arc<Shared>,
        place: Place,
        identity: Identity,
        content: Content,
        flag: Arc<Flag>,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let (writes, over) = (Mutex::new(0), AtomicBool::new(false));
        let Content { before, moved, payload, .. } = content;
        let (attempt, more) = (before + 1, AtomicBool::new(moved));
        Self { identity, place, attempt, more, payload, flag, shared, writes, over, _slot: slot }
    }

    /// Whether a job with this deadline may still begin. If not, it has ended, or is another's.
    pub(super) async fn may_begin(&self, expires_at: i64) -> Result<bool, QueueError> {
        let call = self
            .end_call("begin")
            .args(self.signature())
            .num(expires_at)
            .arg(to_json(&jobs::expired())?)
            .arg(to_json(&Outcome::Cancelled)?);
        let word: String = self.shared.queue.link.call(&call).await?;
        let begins = word == "ok";
        if !begins {
            self.end();
        }
        Ok(begins)
    }

    /// What is given back of an attempt that did not begin.
    pub(super) fn unbegun(&self) -> (Place, Identity) {
        self.end();
        (self.place.clone(), self.identity.clone())
    }

    pub(super) fn id(&self) -> JobId {
        self.identity.id()
    }

    pub(super) async fn finish(
        &self,
        outcome: &Outcome,
        task: Option<&Task>,
        events: &[Event],
    ) -> Result<(), QueueError> {
        let _writes = self.writes.lock().await;
        let plain = self.identity.is_plain() && !self.more.load(Ordering::Acquire);
        if plain && task.is_none() && events.is_empty() && self.flag.reason().is_none() {
            return self.finish_plainly(outcome).await;
        }
        let mut call = self.end_call("finish").key(keys::EVENTS);
        if let Some(task) = task {
            call = call.keys(task_keys(&task.deployment));
        }
        call = call.args(self.signature()).arg(state_of(outcome));
        let call = with_events(with_task(call.arg(to_json(outcome)?), task)?, events)?;
        let reply =
            self.shared.deliver::<Vec<String>>(&call, std::slice::from_ref(&self.place)).await?;
        if let Some(reply) = reply {
            self.judge(&reply, task)?;
        }
        self.end();
        Ok(())
    }

    async fn finish_plainly(&self, outcome: &Outcome) -> Result<(), QueueError> {
        let whose = (self.id(), self.identity.account());
        let ending = Ending::new(&self.place, whose, outcome, self.attempt, &self.payload)?;
        if !self.shared.endings.ask(ending).await? {
            return Err(QueueError::Fenced);
        }
        self.end();
        Ok(())
    }

    /// A call that ends or moves the job: it names the job and its lane first.
    fn end_call(&self, function: &'static str) -> Call {
        self.identity.write(Call::shared(function)).key(keys::lane(&self.place.lane))
    }

    /// A call that writes something beside the job's record.
    fn write(&self, function: &'static str) -> Call {
        self.write_with(Call::new(function))
    }

    fn write_with(&self, call: Call) -> Call {
        self.more.store(true, Ordering::Release);
        call.key(keys::more(self.id())).key(keys::lane(&self.place.lane))
    }

    /// What shows that we hold it.
    fn signature(&self) -> [&str; 2] {
        [&self.place.entry, &self.shared.options.name]
    }

    fn judge(&self, reply: &[String], task: Option<&Task>) -> Result<(), QueueError> {
        match reply.first().map(String::as_str) {
            Some("ok") => Ok(()),
            Some("fenced") => Err(QueueError::Fenced),
            Some("short") => {
                let free = free(&reply[1..])
                    .ok_or_else(|| QueueError::corrupt("the capacity", format!("{reply:?}")))?;
                let asked = task.map(|t| t.reserved).unwrap_or_default();
                Err(QueueError::Shortfall(Shortfall { asked, free }))
            }
            Some("beyond") => {
                let beyond = Beyond::parse(&reply[1..]);
                Err(beyond.map_or_else(
                    || QueueError::corrupt("an account's allowance", format!("{reply:?}")),
                    QueueError::Beyond,
                ))
            }
            Some(_) | None => {
                Err(QueueError::corrupt(format!("job {}", self.id()), format!("{reply:?}")))
            }
        }
    }

    /// The attempt has ended: nothing is left to give back.
    fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.shared.held.remove(&self.place);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let over = self.over.load(Ordering::Acquire);
        if !over {
            // Until it is given back, a comparison must not take it for one that nobody has.
            self.shared.held.wait_for_delivery(std::slice::from_ref(&self.place));
        }
        self.shared.held.remove(&self.place);
        if !over {
            // Without a listener the runner itself is gone, and with it its heartbeat.
            let _ = self.shared.dropped.send((self.place.clone(), self.identity.clone()));
        }
    }
}

impl Shared {
    /// Says how an attempt ended. While redis-server is away it is kept on disk, if there is a spool,
    /// and delivered afterwards: then there is no answer yet.
    pub(super) async fn deliver<T: FromRedisValue>(
        &self,
        call: &Call,
        places: &[Place],
    ) -> Result<Option<T>, QueueError> {
        let link = &self.queue.link;
        let Some(spool) = &self.spool else { return link.call(call).await.map(Some) };
        let patient = link.patient_for(BEFORE_SPOOLING);
        let error = match tokio::time::timeout(NO_ANSWER, patient.call(call)).await {
            Ok(Err(QueueError::Unavailable(error))) if is_transient(&error) => error.to_string(),
            Ok(answer) => return answer.map(Some),
            // Should it be answered after all, it is answered the same the second time.
            Err(_) => format!("no answer in {NO_ANSWER:?}"),
        };
        self.held.wait_for_delivery(places);
        if let Err(disk) = spool.put(link, call, places) {
            self.held.delivered(places);
            tracing::error!(%disk, "cannot keep an outcome on disk; waits for redis-server instead");
            return link.call(call).await.map(Some);
        }
        tracing::warn!(%error, outcomes = places.len(), "redis-server is away; outcomes wait on disk");
        self.spooled.notify_one();
        Ok(None)
    }

    /// Gives back what was claimed and cannot be done now, as if it had not been tried.
    pub(super) async fn give_back(&self, leases: &[(Place, Identity)]) -> Result<u64, QueueError> {
        give_back(&self.queue.link, &self.options.name, Counts::No, leases).await
    }
}
