//! Follows one node's events, and looks now and then whether they told everything.
//!
//! ```text
//!   connect after the stored cursor ─▶ inbox ─▶ batch ─▶ mirror (one transaction) ─▶ batch …
//!        ▲                                         │
//!        └── back-off ◀── broken                   └─▶ every 30 s, after a gap, when a task settled: look
//! ```
//!
//! A connection hands over one event at a time, whatever has come: so a task of its own reads it, also
//! during a transaction, and what piled up meanwhile is the next batch.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use rhizome_model::{Code, DeploymentId, Event, Failure, NodeId};
use rhizome_service::{clock, random};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::look::{self, Looked, Scope};
use super::workers::Work;
use super::{Inner, RETRY, rest};

/// Events that one transaction takes, when they have piled up.
const BATCH: usize = 512;
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// After connecting, what waited in the stream comes first.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Every so many looks, at settled tasks too.
const LOOK_AT_ALL_EVERY: u32 = 10;
/// How soon a task is looked at that has settled, or seems to be further than its events.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A node without tasks is followed for so many looks more.
const IDLE_LOOKS: u32 = 10;

/// A server-sent event.
struct Item {
    name: String,
    id: String,
    data: String,
}

enum End {
    Broken(Failure),
    Idle,
}

pub async fn run(inner: &Arc<Inner>, work: Work<NodeId>) {
    let node = work.key;
    let mut attempt = 0;
    loop {
        match session(inner, node, &mut attempt).await {
            End::Idle if work.may_end() => return,
            End::Idle => {}
            End::Broken(failure) => {
                attempt += 1;
                inner.nodes.doubt(node);
                if attempt == 1 {
                    tracing::warn!(%node, error = %failure, "a node's events cannot be followed");
                }
                rest(random::jittered(RETRY, attempt), &work.bell).await;
            }
        }
    }
}

/// From one connection to its end.
async fn session(inner: &Arc<Inner>, node: NodeId, attempt: &mut u32) -> End {
    let stream = match connect(inner, node).await {
        Ok(stream) => stream,
        Err(failure) => return End::Broken(failure),
    };
    let (inbox, mut outbox) = mpsc::channel(BATCH);
    let _reader = AbortOnDropHandle::new(tokio::spawn(read(stream, inbox)));
    let mut batch = Vec::new();
    if *attempt > 0 {
        tracing::info!(%node, "a node's events are followed again");
    }
    *attempt = 0;
    // The node answers: who waits for it need not wait longer.
    inner.senders.ring(|key| key.node == node);
    let mut session = Session::new(inner, node);
    loop {
        let (look_at, looking) = (session.look_at, session.look.is_some());
        let step = tokio::select! {
            taken = outbox.recv_many(&mut batch, BATCH) => match taken {
                0 => Err(Failure::new(Code::Unavailable, "its supervisor ended the stream")),
                _ => session.take(std::mem::take(&mut batch)).await,
            },
            looked = session.looking() => session.judge(looked).await,
            () = sleep_until(look_at), if !looking => {
                session.begin_look();
                Ok(())
            }
        };
        if let Err(failure) = step {
            return End::Broken(failure);
        }
        if session.idle >= IDLE_LOOKS {
            return End::Idle;
        }
    }
}

async fn read(
    stream: impl Stream<Item = Result<Item, Failure>> + Send,
    inbox: mpsc::Sender<Result<Item, Failure>>,
) {
    let mut stream = std::pin::pin!(stream);
    while let Some(item) = stream.next().await {
        if inbox.send(item).await.is_err() {
            return;
        }
    }
}

async fn connect(
    inner: &Inner,
    node: NodeId,
) -> Result<impl Stream<Item = Result<Item, Failure>> + Send + use<>, Failure> {
    let supervisor = inner.nodes.supervisor(node).await?;
    let cursor = inner.store.cursor(node).await?;
    let opened = supervisor.ours.events("/v1/events", cursor.as_deref());
    let stream = tokio::time::timeout(CONNECT_WITHIN, opened).await.unwrap_or_else(|_| {
        Err(Failure::new(Code::Unavailable, "its supervisor does not answer"))
    })?;
    Ok(stream.map(|item| item.map(|e| Item { name: e.event, id: e.id, data: e.data })))
}

struct Session<'a> {
    inner: &'a Arc<Inner>,
    node: NodeId,
    look: Option<BoxFuture<'static, Result<Looked, Failure>>>,
    look_at: Instant,
    looks: u32,
    /// Tasks to look at with the next look, whatever their phase.
    due: Vec<DeploymentId>,
    /// Tasks that were further than their events, and as of when.
    suspects: BTreeMap<DeploymentId, i64>,
    idle: u32,
}

impl<'a> Session<'a> {
    fn new(inner: &'a Arc<Inner>, node: NodeId) -> Self {
        Self {
            inner,
            node,
            look: None,
            look_at: Instant::now() + FIRST_LOOK,
            looks: 0,
            due: Vec::new(),
            suspects: BTreeMap::new(),
            idle: 0,
        }
    }

    async fn take(&mut self, batch: Vec<Result<Item, Failure>>) -> Result<(), Failure> {
        let mut events = Vec::with_capacity(batch.len());
        let mut place = None;
        let mut broken = Ok(());
        for item in batch {
            let item = match item {
                Ok(item) => item,
                Err(failure) => {
                    broken = Err(failure);
                    break;
                }
            };
            if item.name == "trimmed" {
                tracing::warn!(node = %self.node, "events of a node were lost; its tasks are looked at");
                self.looks = 0;
                self.look_soon();
                continue;
            }
            match serde_json::from_str::<Event>(&item.data) {
                Ok(event) => events.push(event),
                // Going on is all that helps: it will not be readable the next time either.
                Err(error) => {
                    tracing::warn!(node = %self.node, id = item.id, %error,
                        "a node's event cannot be read");
                }
            }
            if !item.id.is_empty() {
                place = Some(item.id);
            }
        }
        if let Some(last) = events.last() {
            let lag = clock::now_ms().saturating_sub(last.at).max(0);
            metrics::histogram!("rhizome_coord_mirror_lag_seconds").record(lag as f64 / 1000.0);
        }
        let mirrored = self.inner.store.mirror(self.node, events, place.as_deref()).await?;
        if !mirrored.settled.is_empty() {
            // A node that was busy with this deployment no longer is.
            let (node, settled) = (self.node, &mirrored.settled);
            self.inner.senders.ring(|k| k.node == node && settled.contains(&k.deployment));
            self.due.extend(mirrored.settled);
            self.look_soon();
        }
        broken
    }

    fn look_soon(&mut self) {
        self.look_at = self.look_at.min(Instant::now() + LOOK_AGAIN);
    }

    fn begin_look(&mut self) {
        let due = std::mem::take(&mut self.due);
        let all = self.looks.is_multiple_of(LOOK_AT_ALL_EVERY);
        let scope = match (all, due.is_empty()) {
            (true, _) => Scope::All,
            (false, true) => Scope::Unsettled,
            (false, false) => Scope::These(due),
        };
        if !matches!(scope, Scope::These(_)) {
            self.looks += 1;
        }
        self.look_at = Instant::now() + LOOK_EVERY;
        self.look = Some(Box::pin(look::look(self.inner.clone(), self.node, scope)));
    }

    async fn looking(&mut self) -> Result<Looked, Failure> {
        let Some(look) = &mut self.look else { return pending().await };
        let looked = look.await;
        self.look = None;
        looked
    }

    /// A node that cannot be looked at is not followed either: the stream may be long dead.
    async fn judge(&mut self, looked: Result<Looked, Failure>) -> Result<(), Failure> {
        let looked = looked?;
        self.idle = if looked.empty { self.idle + 1 } else { 0 };
        let verdict = look::judge(self.inner, self.node, looked, &mut self.suspects).await?;
        if !verdict.again.is_empty() {
            self.due.extend(verdict.again);
            self.look_soon();
        }
        if verdict.begun_anew {
            self.inner.store.forget_cursor(self.node).await?;
            return Err(Failure::new(Code::Unavailable, "the node has lost what it knew"));
        }
        Ok(())
    }
}
