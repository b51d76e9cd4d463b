//! Writes the journal of a script while it is evaluated.
//!
//! ```text
//!   host ─▶ inbox ─▶ writer: all that is there ─▶ one step in redis-server: what the script does,
//!                                                 its jobs, events
//! ```
//!
//! Nothing is done for an effect before it is written: its job comes into being in the same step. How
//! it ended is written in the step that ends its job ([`rhizome_model::Ends`]).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_engine::HostError;
use rhizome_model::api::OutputChunk;
use rhizome_model::{
    Action, Capacity, Code, Demand, DesiredResource, Effect, Failure, Job, NodeFacts, Outcome,
    Phase, Step, Task, What,
};
use rhizome_queue::{Entries, Lease, QueueError};
use rhizome_service::clock;
use tokio::sync::{mpsc, oneshot};

use super::event;
use crate::allowance::Allowances;

/// Entries that are written in one step.
const TOGETHER: usize = 64;

/// An effect that begins, and the jobs that it takes.
pub(super) struct Entry {
    pub(super) call: u64,
    pub(super) effect: Effect,
    pub(super) jobs: Vec<Job>,
    /// The answer is the refusal, if it is refused.
    pub(super) written: oneshot::Sender<Option<Failure>>,
}

/// The host's end.
pub(super) type Inbox = mpsc::UnboundedSender<Entry>;

pub(super) struct Writer<'a> {
    lease: &'a Lease,
    allowances: Allowances,
    task: Task,
    demand: Demand,
    /// To be written with the first effect of the first attempt.
    facts: Option<NodeFacts>,
    /// Whether anything was resized: then the journal knows better what is declared.
    resizes: bool,
    entries: mpsc::UnboundedReceiver<Entry>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        lease: &'a Lease,
        allowances: Allowances,
        task: Task,
        facts: Option<NodeFacts>,
    ) -> Result<(Self, Inbox), Failure> {
        let mut demand = Demand::of(&task.desired)?;
        for resource in &task.declared {
            demand.add(resource)?;
        }
        let (inbox, entries) = mpsc::unbounded_channel();
        Ok((Self { lease, allowances, task, demand, facts, resizes: false, entries }, inbox))
    }

    /// Writes until nobody has anything to write any more; then the task is as the node holds it.
    pub(super) async fn run(&mut self) -> Result<(), QueueError> {
        let mut batch = Vec::new();
        while self.entries.recv_many(&mut batch, TOGETHER).await > 0 {
            // What the script does while it is about to run anyway goes along.
            tokio::task::yield_now().await;
            while batch.len() < TOGETHER
                && let Ok(more) = self.entries.try_recv()
            {
                batch.push(more);
            }
            self.write_batch(&mut batch).await?;
        }
        Ok(())
    }

    async fn write_batch(&mut self, batch: &mut Vec<Entry>) -> Result<(), QueueError> {
        match self.write(batch).await {
            Ok(()) => batch.drain(..).for_each(|entry| answer(entry.written, None)),
            Err(QueueError::Shortfall(_) | QueueError::Beyond(_)) => {
                for entry in batch.drain(..) {
                    self.write_one(entry).await?;
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) fn resizes(&self) -> bool {
        self.resizes
    }

    pub(super) fn into_task(self) -> Task {
        self.task
    }

    /// One of several that do not fit together. What does not fit by itself is refused, and the
    /// refusal is written: a later attempt finds the same.
    async fn write_one(&mut self, entry: Entry) -> Result<(), QueueError> {
        let Some(failure) = self.refusal(&entry).await? else {
            answer(entry.written, None);
            return Ok(());
        };
        let Entry { call, effect, written, .. } = entry;
        let mut entries = self.entries_of(&[]);
        let declared = resource_of(&effect).cloned();
        entries.declared = usize::from(declared.is_some());
        entries.steps.push((call, self.step(effect)));
        entries.results.push((call, Outcome::Failed(failure.clone())));
        self.lease.journal(&self.task, &entries).await?;
        self.facts = None;
        self.task.declared.extend(declared);
        answer(written, Some(failure));
        Ok(())
    }

    /// Why one cannot be; none when it was written.
    async fn refusal(&mut self, entry: &Entry) -> Result<Option<Failure>, QueueError> {
        loop {
            match self.write(std::slice::from_ref(entry)).await {
                Ok(()) => return Ok(None),
                Err(QueueError::Shortfall(shortfall)) => {
                    let message = format!("the node is too full: {shortfall}");
                    return Ok(Some(Failure::new(Code::InsufficientCapacity, message)));
                }
                Err(QueueError::Beyond(beyond)) => {
                    let account = self.task.deployment.account;
                    if let Err(refusal) = self.allowances.raise(account, &beyond).await {
                        return Ok(Some(refusal));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn write(&mut self, batch: &[Entry]) -> Result<(), QueueError> {
        let mut task = self.task.clone();
        let mut demand = self.demand.clone();
        let mut entries = self.entries_of(batch);
        let declared: Vec<_> =
            batch.iter().filter_map(|entry| resource_of(&entry.effect)).cloned().collect();
        for resource in &declared {
            // Its spec was checked when it was declared.
            demand.add(resource).map_err(|e| QueueError::Refused(e.to_string()))?;
        }
        for entry in batch {
            self.resizes |= entry.effect.resizes();
            self.demand_of_resize(&mut demand, &entry.effect);
        }
        task.reserved = larger(task.reserved, demand.total());
        task.updated_at = clock::now_ms();
        if task.phase != Phase::Running {
            task.phase = Phase::Running;
            let what = What::Phase { phase: Phase::Running, failure: None, outputs: None };
            entries.events.insert(0, event(&task, what));
        }
        self.lease.journal(&task, &entries).await?;
        self.print(&entries).await?;
        self.facts = None;
        (self.task, self.demand) = (task, demand);
        self.task.declared.extend(declared);
        Ok(())
    }

    /// A size that makes no sense the runner refuses, which does it.
    fn demand_of_resize(&self, demand: &mut Demand, effect: &Effect) {
        let Effect::Act { resource, action } = effect else { return };
        let Action::Resize { to } = action else { return };
        let Some(from) = self.task.declared.iter().find(|r| &r.name == resource) else { return };
        if let Ok(spec) = from.kind.resized(&from.spec, to) {
            let _ = demand.resize(from, &spec);
        }
    }

    /// Who looks at the job sees what the script logged, too.
    async fn print(&self, entries: &Entries) -> Result<(), QueueError> {
        let mut lines = String::new();
        for (_, step) in &entries.steps {
            if let Effect::Log { message } = &step.effect {
                lines.push_str(message);
                lines.push('\n');
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        self.lease.print(&OutputChunk::Stdout { data: STANDARD.encode(lines) }).await
    }

    fn entries_of(&self, batch: &[Entry]) -> Entries {
        let mut entries = Entries { facts: self.facts.clone(), ..Entries::default() };
        for Entry { call, effect, jobs, .. } in batch {
            entries.declared += usize::from(resource_of(effect).is_some());
            entries.jobs.extend(jobs.iter().cloned());
            entries.events.extend(self.said(effect).map(|what| event(&self.task, what)));
            entries.steps.push((*call, self.step(effect.clone())));
        }
        entries
    }

    fn step(&self, effect: Effect) -> Step {
        Step { by: self.lease.token().to_owned(), at: clock::now_ms(), effect }
    }

    fn said(&self, effect: &Effect) -> Option<What> {
        match effect {
            Effect::Declare { resource } => Some(What::Declared {
                resource: resource.name.clone(),
                kind: resource.kind,
                line: resource.line,
            }),
            Effect::Log { message } => Some(What::Log { message: message.clone() }),
            Effect::Act { .. } => None,
        }
    }
}

fn answer(written: oneshot::Sender<Option<Failure>>, refusal: Option<Failure>) {
    // Whoever asked may be gone.
    let _ = written.send(refusal);
}

fn resource_of(effect: &Effect) -> Option<&DesiredResource> {
    match effect {
        Effect::Declare { resource } => Some(resource),
        Effect::Act { .. } | Effect::Log { .. } => None,
    }
}

fn larger(a: Capacity, b: Capacity) -> Capacity {
    a.saturating_add(b.saturating_sub(a))
}

/// Puts an entry into the inbox; fails when the writer is gone, because the lease is.
pub(super) fn put(inbox: &Inbox, entry: Entry) -> Result<(), HostError> {
    inbox.send(entry).map_err(|_| HostError::Aborted)
}
