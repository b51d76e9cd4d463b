//! The pools of a node: how many runners serve which queues, and whether they take jobs.
//!
//! ```text
//!   settings in the queue ──▶ wanted runners per pool ──▶ slots, one keeper each ──▶ processes
//!    (mode, scale; kept)        drained: none               (keeper.rs)
//! ```
//!
//! What an operator sets is kept by the queue, so it holds over restarts, and whoever set it: the
//! pools follow the queue's word. A slot too many is told to leave; its runner ends what it has.
//! Pausing is the queue's own: the runners stay and are given nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhizome_model::api::{PoolChange, PoolMode, PoolView, RunnerView};
use rhizome_model::{Code, Failure};
use rhizome_queue::{Fence, PoolSetting, Queue};
use rhizome_service::Shutdown;
use tokio_util::sync::CancellationToken;

use crate::fence::Groups;

/// Every runner is a process with connections and memory of its own.
const MOST_RUNNERS: usize = 64;
/// Between looks at the settings while redis-server is away.
const AGAIN: Duration = Duration::from_secs(1);

/// Runners that serve the same queues.
#[derive(Debug, Clone)]
pub struct Pool {
    pub queues: Vec<String>,
    /// As long as nobody has set another number.
    pub runners: usize,
    /// The program and its arguments; `--name NAME --spool DIR` is added, the name unique per start.
    pub command: (PathBuf, Vec<String>),
}

/// All pools, with what runs now.
#[derive(Clone)]
pub struct Pools(Arc<Shared>);

pub(crate) struct Shared {
    pub pools: Vec<Pool>,
    pub queue: Queue,
    pub groups: Groups,
    /// Where runners leave outcomes that they cannot deliver.
    pub spool: PathBuf,
    pub shutdown: Shutdown,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    settings: Vec<Setting>,
    slots: BTreeMap<u64, Slot>,
    next: u64,
}

/// What a pool is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    mode: PoolMode,
    scale: usize,
}

/// One runner, started again whenever it dies.
pub(crate) struct Slot {
    pool: usize,
    leave: CancellationToken,
    pub running: Option<(String, u32)>,
    pub restarts: u32,
    pub problem: Option<String>,
}

impl Pools {
    /// Starts what the settings ask for, and follows them until told to stop. What a supervisor
    /// before us has left behind is brought to its end beside it.
    pub fn start(
        pools: Vec<Pool>,
        queue: Queue,
        groups: Groups,
        spool: PathBuf,
        shutdown: &Shutdown,
    ) -> Self {
        let settings = pools.iter().map(|p| Setting::of(p, &BTreeMap::new())).collect();
        let state = Mutex::new(State { settings, ..State::default() });
        let shutdown = shutdown.clone();
        let this = Self(Arc::new(Shared { pools, queue, groups, spool, shutdown, state }));
        let tracker = &this.0.shutdown.tracker;
        // Before any of ours has a group.
        for runner in this.0.groups.left_behind() {
            tracker.spawn(crate::keeper::bury_left_behind(this.0.clone(), runner));
        }
        tracker.spawn(this.clone().steer());
        this
    }

    pub fn view(&self) -> Vec<PoolView> {
        let state = self.0.locked();
        (0..self.0.pools.len()).map(|pool| self.0.view(&state, pool)).collect()
    }

    /// Healthy while every runner that should be there runs or has only just died.
    pub fn health(&self) -> Result<(), String> {
        let state = self.0.locked();
        let kept = state.slots.values().filter(|s| !s.leave.is_cancelled());
        let problems: Vec<_> = kept.filter_map(|s| s.problem.clone()).collect();
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }

    /// Changes the pool that serves a queue. When this answers it is kept and under way.
    pub async fn change(&self, queue: &str, change: PoolChange) -> Result<PoolView, Failure> {
        let pools = &self.0.pools;
        let found = pools.iter().position(|p| p.queues.iter().any(|q| q == queue));
        let pool = found.ok_or_else(|| {
            let all: Vec<_> = pools.iter().flat_map(|p| p.queues.iter().cloned()).collect();
            let message = format!("no pool serves '{queue}'; there are {}", all.join(", "));
            Failure::new(Code::NotFound, message)
        })?;
        if change.scale.is_some_and(|n| n > MOST_RUNNERS) {
            let message = format!("a pool has at most {MOST_RUNNERS} runners");
            return Err(Failure::new(Code::BadRequest, message));
        }
        self.look().await?;
        let now = self.0.locked().settings[pool];
        let change = now.complete(change);
        // A pool is changed as a whole: all its queues are served by the same runners.
        for queue in &pools[pool].queues {
            if let Some(scale) = change.scale {
                self.0.queue.set_scale(queue, scale).await?;
            }
            if let Some(mode) = change.mode {
                self.0.queue.set_mode(queue, mode).await?;
            }
        }
        self.look().await?;
        Ok(self.0.view(&self.0.locked(), pool))
    }

    async fn steer(self) {
        let stop = self.0.shutdown.token.clone();
        let follow = async {
            loop {
                match self.look().await {
                    Ok(()) => self.0.queue.pools_changed().await,
                    Err(error) => {
                        tracing::warn!(%error, "cannot read the settings of the pools");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(follow).await;
    }

    /// Reads the settings and brings the slots in line with them.
    async fn look(&self) -> Result<(), Failure> {
        let settings = self.0.queue.pools().await?;
        let of = |pool| Setting::of(pool, &settings);
        let settings: Vec<_> = self.0.pools.iter().map(of).collect();
        let new = self.0.locked().bring_in_line(settings, &self.0.shutdown.token);
        for (slot, pool, leave) in new {
            let keeper = crate::keeper::keep(self.0.clone(), slot, pool, leave);
            self.0.shutdown.tracker.spawn(keeper);
        }
        Ok(())
    }
}

impl Fence for Pools {
    /// A runner that fell silent, be it one of ours that hangs: nothing of it runs when this
    /// answers, and what it could still say of its jobs has been said.
    fn fence<'a>(&'a self, runner: &'a str) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            self.0.end(runner).await;
            self.0.groups.remove(runner).await;
        })
    }
}

impl Shared {
    /// Ends all processes of a runner, then delivers what it left for delivery, however long
    /// redis-server is away: a job whose outcome is known must not be done again.
    pub async fn end(&self, runner: &str) {
        let ours = |s: &Slot| s.running.as_ref().filter(|(n, _)| n == runner).map(|(_, pid)| *pid);
        let pid = self.locked().slots.values().find_map(ours);
        self.groups.end(runner, pid).await;
        match self.queue.patient().deliver_spool(&self.spool, runner).await {
            Ok(0) => {}
            Ok(outcomes) => tracing::info!(runner, outcomes, "delivered for a dead runner"),
            Err(error) => tracing::warn!(runner, %error, "cannot deliver for a dead runner"),
        }
    }

    /// Gives the jobs of a runner that has ended back, as soon as redis-server is there. Until then its
    /// group is there: should we die first, the next supervisor goes on.
    pub async fn give_back(&self, runner: &str) {
        match self.queue.patient().release_runner(runner).await {
            Ok(0) => {}
            Ok(jobs) => tracing::info!(runner, jobs, "gave back the jobs of a dead runner"),
            Err(error) => {
                tracing::warn!(runner, %error, "its jobs go back when its heartbeat is missed");
                return;
            }
        }
        self.groups.remove(runner).await;
    }

    pub fn update(&self, slot: u64, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.locked().slots.get_mut(&slot) {
            change(slot);
        }
    }

    pub fn remove(&self, slot: u64) {
        self.locked().slots.remove(&slot);
    }

    fn view(&self, state: &State, pool: usize) -> PoolView {
        let setting = state.settings[pool];
        let runners = state.slots.values().filter(|s| s.pool == pool).filter_map(|slot| {
            let (name, pid) = slot.running.clone()?;
            Some(RunnerView { name, pid, restarts: slot.restarts })
        });
        PoolView {
            queues: self.pools[pool].queues.clone(),
            mode: setting.mode,
            scale: setting.scale,
            runners: runners.collect(),
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Tells slots too many to leave, the youngest first; answers those that are to be kept from
    /// now on.
    fn bring_in_line(
        &mut self,
        settings: Vec<Setting>,
        stop: &CancellationToken,
    ) -> Vec<(u64, usize, CancellationToken)> {
        let mut new = Vec::new();
        for (pool, setting) in settings.iter().enumerate() {
            let stays = |s: &Slot| s.pool == pool && !s.leave.is_cancelled();
            let staying: Vec<_> =
                self.slots.iter().filter(|(_, s)| stays(s)).map(|(n, _)| *n).collect();
            for slot in staying.iter().skip(setting.runners()) {
                self.slots[slot].leave.cancel();
            }
            for _ in staying.len()..setting.runners() {
                let leave = stop.child_token();
                let slot =
                    Slot { pool, leave: leave.clone(), running: None, restarts: 0, problem: None };
                self.slots.insert(self.next, slot);
                new.push((self.next, pool, leave));
                self.next += 1;
            }
        }
        self.settings = settings;
        new
    }
}

impl Setting {
    /// What is set for any of a pool's queues counts for the pool.
    fn of(pool: &Pool, settings: &BTreeMap<String, PoolSetting>) -> Self {
        let set = || pool.queues.iter().filter_map(|q| settings.get(q));
        let mode = set().map(|s| s.mode).find(|m| *m != PoolMode::Running).unwrap_or_default();
        let scale = set().filter_map(|s| s.scale).max().unwrap_or(pool.runners);
        Self { mode, scale: scale.min(MOST_RUNNERS) }
    }

    fn runners(self) -> usize {
        match self.mode {
            PoolMode::Running | PoolMode::Paused => self.scale,
            PoolMode::Drained => 0,
        }
    }

    /// No runners is a drain, which remembers how many there were; any other number ends a drain.
    fn complete(self, change: PoolChange) -> PoolChange {
        match (change.mode, change.scale) {
            (_, Some(0)) => PoolChange { mode: Some(PoolMode::Drained), scale: None },
            (None, Some(_)) if self.mode == PoolMode::Drained => {
                PoolChange { mode: Some(PoolMode::Running), ..change }
            }
            _ => change,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(mode: PoolMode, scale: usize) -> Setting {
        Setting { mode, scale }
    }

    #[test]
    fn slots_follow_the_settings_and_the_youngest_leave_first() {
        let stop = CancellationToken::new();
        let mut state = State::default();
        let numbers = |new: Vec<(u64, usize, CancellationToken)>| {
            new.into_iter().map(|(n, pool, _)| (n, pool)).collect::<Vec<_>>()
        };
        let of = |first, second| {
            vec![setting(PoolMode::Running, first), setting(PoolMode::Running, second)]
        };
        assert_eq!(numbers(state.bring_in_line(of(1, 2), &stop)), [(0, 0), (1, 1), (2, 1)]);
        assert_eq!(numbers(state.bring_in_line(of(3, 1), &stop)), [(3, 0), (4, 0)]);
        let leaving = |state: &State| {
            let leaves = |(n, s): (&u64, &Slot)| s.leave.is_cancelled().then_some(*n);
            state.slots.iter().filter_map(leaves).collect::<Vec<_>>()
        };
        assert_eq!(leaving(&state), [2]);
        // One that leaves does not count, though it is still there.
        assert_eq!(numbers(state.bring_in_line(of(3, 2), &stop)), [(5, 1)]);
        let drained = vec![setting(PoolMode::Drained, 3), setting(PoolMode::Paused, 2)];
        assert_eq!(numbers(state.bring_in_line(drained, &stop)), []);
        assert_eq!(leaving(&state), [0, 2, 3, 4]);
        stop.cancel();
        assert_eq!(leaving(&state).len(), 6, "all leave when we stop");
    }

    #[test]
    fn no_runners_is_a_drain_and_a_number_ends_it() {
        let scale = |n| PoolChange { mode: None, scale: Some(n) };
        let mode = |m| PoolChange { mode: Some(m), scale: None };
        let running = setting(PoolMode::Running, 2);
        assert_eq!(running.complete(scale(0)), mode(PoolMode::Drained));
        assert_eq!(running.complete(scale(3)), scale(3));
        let drained = setting(PoolMode::Drained, 2);
        let both = PoolChange { mode: Some(PoolMode::Running), scale: Some(3) };
        assert_eq!(drained.complete(scale(3)), both);
        let paused = setting(PoolMode::Paused, 2);
        assert_eq!(paused.complete(scale(3)), scale(3), "it stays paused");
        assert_eq!(paused.complete(mode(PoolMode::Running)), mode(PoolMode::Running));
    }

    #[test]
    fn what_is_set_for_one_queue_counts_for_its_pool() {
        let queues = vec!["volume-actions".to_owned(), "machine-actions".to_owned()];
        let pool = Pool { queues, runners: 1, command: (PathBuf::new(), Vec::new()) };
        assert_eq!(Setting::of(&pool, &BTreeMap::new()), setting(PoolMode::Running, 1));
        let set = PoolSetting { mode: PoolMode::Paused, scale: Some(4) };
        let settings = BTreeMap::from([("machine-actions".to_owned(), set)]);
        assert_eq!(Setting::of(&pool, &settings), setting(PoolMode::Paused, 4));
        let many = PoolSetting { mode: PoolMode::Running, scale: Some(usize::MAX) };
        let settings = BTreeMap::from([("machine-actions".to_owned(), many)]);
        assert_eq!(Setting::of(&pool, &settings).scale, MOST_RUNNERS);
    }
}
