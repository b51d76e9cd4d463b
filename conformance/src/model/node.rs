//! The model as a node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use rhizome_model::api::{AccountLimits, OutputChunk, PoolMode};
use rhizome_model::{AccountId, Code, Event, Failure, Job, JobId, JobState, Outcome};
use rhizome_queue::{AccountStats, JobRecord, Periodic, QueueStats, Submission};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Flaw;
use super::claim::slot;
use super::seat::ModelRunner;
use super::state::{Entry, Serving, State};
use crate::bed::now;
use crate::{Node, Result, Runner, Seat, Upkeep};

const SILENCE: Duration = Duration::from_millis(300);
/// How often time passes.
const TICK: Duration = Duration::from_millis(2);

pub(super) struct Shared {
    state: Mutex<State>,
    /// Changes whenever anything does.
    changes: watch::Sender<u64>,
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.locked());
        self.changes.send_modify(|changes| *changes += 1);
        changed
    }

    /// Looks whenever something changed, and now and then, until there is something.
    pub(super) async fn when<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changes = self.changes.subscribe();
        loop {
            let found = look(&mut self.locked());
            if let Some(found) = found {
                self.changes.send_modify(|changes| *changes += 1);
                return found;
            }
            // Its sender is ours: it does not end.
            let _ = tokio::time::timeout(2 * TICK, changes.changed()).await;
        }
    }
}

pub(super) struct ModelNode(Arc<Shared>);

impl ModelNode {
    pub(super) fn new(flaw: Option<Flaw>) -> Self {
        let state = Mutex::new(State::new(flaw));
        Self(Arc::new(Shared { state, changes: watch::Sender::new(0) }))
    }
}

#[async_trait]
impl Node for ModelNode {
    async fn submit(&self, jobs: &[Job]) -> Result<Vec<Submission>> {
        self.0.change(|state| state.submit(jobs))
    }

    async fn cancel(&self, id: JobId) -> Result<JobState> {
        self.0.change(|state| state.cancel(id))
    }

    async fn again(&self, id: JobId) -> Result<JobId> {
        self.0.change(|state| state.again(id))
    }

    async fn job(&self, id: JobId) -> Result<Option<JobRecord>> {
        Ok(self.0.locked().jobs.get(&id).map(Entry::record))
    }

    async fn wait(&self, id: JobId) -> Result<Outcome> {
        let outcome = self.0.when(|state| match state.entry(id) {
            Ok(entry) => entry.outcome.clone().map(Ok),
            Err(unknown) => Some(Err(unknown)),
        });
        outcome.await
    }

    async fn stats(&self) -> Result<Vec<QueueStats>> {
        let state = self.0.locked();
        Ok(state.queues.iter().map(|queue| stats(&state, queue)).collect())
    }

    async fn runner(&self, seat: Seat) -> Result<Box<dyn Runner>> {
        let alive = Arc::new(());
        let serving =
            Serving { seat: seat.clone(), alive: Arc::downgrade(&alive), silent_since: None };
        self.0.change(|state| {
            state.queues.extend(seat.queues.iter().cloned());
            state.runners.insert(seat.name.clone(), serving);
        });
        let (shared, drain) = (self.0.clone(), CancellationToken::new());
        Ok(Box::new(ModelRunner { shared, seat, drain, alive }))
    }

    fn silence(&self) -> Duration {
        SILENCE
    }

    async fn bury(&self, runner: &str) -> Result<()> {
        self.0.change(|state| state.bury(runner))
    }

    fn maintain(&self) -> Upkeep {
        let stop = CancellationToken::new();
        let (shared, token) = (Arc::downgrade(&self.0), stop.clone());
        let silence = i64::try_from(SILENCE.as_millis()).unwrap_or(i64::MAX);
        let upkeep = async move {
            while let Some(shared) = shared.upgrade() {
                // What cannot be is a defect of the model, and stops it: the case sees that.
                if shared.change(|state| state.tick(silence)).is_err() {
                    return;
                }
                drop(shared);
                tokio::time::sleep(TICK).await;
            }
        };
        tokio::spawn(async move { token.run_until_cancelled(upkeep).await });
        Box::new(stop.drop_guard())
    }

    async fn set_mode(&self, queue: &str, mode: PoolMode) -> Result<()> {
        self.0.change(|state| {
            state.queues.insert(queue.to_owned());
            state.modes.insert(queue.to_owned(), mode);
        });
        Ok(())
    }

    async fn set_limits(&self, account: Option<AccountId>, limits: AccountLimits) -> Result<()> {
        self.0.change(|state| {
            match limits == AccountLimits::default() {
                true => state.limits.remove(&account),
                false => state.limits.insert(account, limits),
            };
        });
        Ok(())
    }

    async fn set_periodic(&self, jobs: &[Periodic]) -> Result<()> {
        self.0.change(|state| {
            let mut old = std::mem::take(&mut state.periodic);
            for periodic in jobs {
                let done = old.remove(&periodic.name).map(|(_, done)| done);
                let done = done.unwrap_or_else(|| slot(periodic.every));
                state.periodic.insert(periodic.name.clone(), (periodic.clone(), done));
            }
        });
        Ok(())
    }

    fn output(&self, id: JobId) -> BoxStream<'static, Result<OutputChunk>> {
        let shared = self.0.clone();
        let read = move |at: Option<usize>| {
            let shared = shared.clone();
            async move {
                let at = at?;
                Some(shared.when(|state| piece(state, id, at)).await)
            }
        };
        futures_util::stream::unfold(Some(0), read).boxed()
    }

    async fn publish(&self, events: &[Event]) -> Result<()> {
        self.0.change(|state| state.events.extend_from_slice(events));
        Ok(())
    }

    fn follow(&self, after: Option<String>) -> BoxStream<'static, Result<(String, Event)>> {
        // The id of an event is how many there were with it.
        let first = after.and_then(|id| id.parse().ok()).unwrap_or(0usize);
        let shared = self.0.clone();
        let read = move |at: usize| {
            let shared = shared.clone();
            async move {
                let event = shared.when(|state| state.events.get(at).cloned()).await;
                Some((Ok(((at + 1).to_string(), event)), at + 1))
            }
        };
        futures_util::stream::unfold(first, read).boxed()
    }

    async fn faults(&self) -> Result<Vec<String>> {
        let state = self.0.locked();
        let odd =
            state.jobs.values().filter(|e| e.held.is_some() != (e.state == JobState::Running));
        Ok(odd.map(|entry| format!("job {} is {:?}", entry.job.id, entry.state)).collect())
    }

    async fn remains(&self) -> Result<Vec<String>> {
        let state = self.0.locked();
        let live = state.jobs.values().filter(|entry| !entry.state.is_ended());
        let mut all: Vec<_> = live.map(|entry| format!("job {}", entry.job.id)).collect();
        all.extend(state.unique.keys().map(|key| format!("unique {key}")));
        all.extend(state.orders.keys().map(|name| format!("order {name}")));
        all.extend(state.runners.keys().map(|name| format!("runner {name}")));
        Ok(all)
    }
}

type Piece = (Result<OutputChunk>, Option<usize>);

/// The next piece of output from `at`, with where to go on; none while there is none yet.
fn piece(state: &mut State, id: JobId, at: usize) -> Option<Piece> {
    let entry = match state.entry(id) {
        Ok(entry) => entry,
        Err(unknown) => return Some((Err(unknown), None)),
    };
    let at = at.max(entry.dropped);
    if let Some(chunk) = entry.output.get(at - entry.dropped) {
        return Some((Ok(chunk.clone()), Some(at + 1)));
    }
    let last = match entry.outcome.clone()? {
        Outcome::Succeeded(result) => OutputChunk::Exit { result },
        Outcome::Failed(failure) => OutputChunk::Failed { failure },
        Outcome::Cancelled => {
            OutputChunk::Failed { failure: Failure::new(Code::Cancelled, "it was cancelled") }
        }
    };
    Some((Ok(last), None))
}

fn stats(state: &State, queue: &str) -> QueueStats {
    let jobs = || state.jobs.values().filter(|entry| entry.job.queue == queue);
    let count = |is: JobState| jobs().filter(|entry| entry.state == is).count() as u64;
    let retrying = jobs().filter(|e| e.state == JobState::Delayed && e.attempts > 0).count();
    let ready = jobs().filter(|entry| entry.state == JobState::Queued);
    let oldest = ready.map(|entry| now() - entry.submitted_at).max();
    let mut accounts: BTreeMap<AccountId, AccountStats> = BTreeMap::new();
    let mut ended: BTreeMap<JobState, u64> = BTreeMap::new();
    for entry in jobs() {
        let account = entry.job.account;
        let new = AccountStats { account, ready: 0, running: 0, ended: BTreeMap::new() };
        let of = accounts.entry(account).or_insert(new);
        match entry.state {
            JobState::Queued => of.ready += 1,
            JobState::Running => of.running += 1,
            JobState::Waiting | JobState::Delayed => {}
            state => {
                *of.ended.entry(state).or_default() += 1;
                *ended.entry(state).or_default() += 1;
            }
        }
    }
    let serves = |serving: &&Serving| serving.seat.queues.iter().any(|served| served == queue);
    QueueStats {
        queue: queue.to_owned(),
        mode: state.modes.get(queue).copied().unwrap_or_default(),
        slots: state.runners.values().filter(serves).map(|s| s.seat.slots as u64).sum(),
        ready: count(JobState::Queued),
        running: count(JobState::Running),
        delayed: count(JobState::Delayed),
        retrying: retrying as u64,
        waiting: count(JobState::Waiting),
        dead: jobs().filter(|entry| entry.is_dead).count() as u64,
        oldest_ms: oldest.unwrap_or_default().unsigned_abs(),
        ended,
        accounts: accounts.into_values().collect(),
    }
}
