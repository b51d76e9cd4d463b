//! The runners of a node: started, watched, restarted.
//!
//! A runner holds the other end of its standard input open: when the supervisor dies, however it
//! dies, the runner reads the end, finishes what it has and stops. When a runner dies, its jobs go
//! back to their queues at once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rhizome_model::Backoff;
use rhizome_model::api::{PoolView, RunnerView};
use rhizome_queue::Queue;
use rhizome_service::{Shutdown, random};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// Between restarts of a runner that keeps dying.
const RESTART: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(30));
/// A runner that lived this long starts again without a pause.
const HEALTHY: Duration = Duration::from_secs(60);
/// A runner finishes what it has in this time; then it is killed and its jobs go back.
const STOP: Duration = Duration::from_secs(30);

/// Runners that serve the same queues.
#[derive(Debug, Clone)]
pub struct Pool {
    pub queues: Vec<String>,
    pub runners: usize,
    /// The program and its arguments; `--name NAME` is added, unique per start.
    pub command: (PathBuf, Vec<String>),
}

/// What runs now.
#[derive(Clone, Default)]
pub struct Pools {
    slots: Arc<Mutex<BTreeMap<(usize, usize), Slot>>>,
    pools: Arc<Vec<Pool>>,
}

#[derive(Clone, Default)]
struct Slot {
    running: Option<(String, u32)>,
    restarts: u32,
    problem: Option<String>,
}

impl Pools {
    pub fn start(pools: Vec<Pool>, queue: Queue, shutdown: &Shutdown) -> Self {
        let this = Self { slots: Arc::default(), pools: Arc::new(pools) };
        for (p, pool) in this.pools.iter().enumerate() {
            for r in 0..pool.runners {
                let watch =
                    this.clone().keep(p, r, pool.clone(), queue.clone(), shutdown.token.clone());
                shutdown.tracker.spawn(watch);
            }
        }
        this
    }

    pub fn view(&self) -> Vec<PoolView> {
        let slots = self.locked();
        let runners = |p: usize| {
            let of_pool = slots.iter().filter(move |((pool, _), _)| *pool == p);
            of_pool.filter_map(|(_, slot)| {
                let (name, pid) = slot.running.clone()?;
                Some(RunnerView { name, pid, restarts: slot.restarts })
            })
        };
        let view = |(p, pool): (usize, &Pool)| PoolView {
            queues: pool.queues.clone(),
            runners: runners(p).collect(),
        };
        self.pools.iter().enumerate().map(view).collect()
    }

    /// Healthy while every runner runs or has only just died.
    pub fn health(&self) -> Result<(), String> {
        let problems: Vec<_> = self.locked().values().filter_map(|s| s.problem.clone()).collect();
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }

    /// Keeps one runner running.
    async fn keep(
        self,
        pool_no: usize,
        no: usize,
        pool: Pool,
        queue: Queue,
        stop: CancellationToken,
    ) {
        let key = (pool_no, no);
        let mut deaths = 0;
        while !stop.is_cancelled() {
            let name = unique_name(&pool.queues);
            let started = Instant::now();
            match spawn(&pool, &name) {
                Ok(mut child) => {
                    let pid = child.id().unwrap_or_default();
                    self.update(key, |s| s.running = Some((name.clone(), pid)));
                    watch(&mut child, &name, &stop).await;
                    self.update(key, |s| s.running = None);
                    give_back(&queue, &name).await;
                }
                Err(error) => {
                    let program = pool.command.0.display();
                    tracing::error!(runner = %name, %error, "cannot start {program}");
                }
            }
            if stop.is_cancelled() {
                break;
            }
            deaths = if started.elapsed() > HEALTHY { 1 } else { deaths + 1 };
            let pause = random::jittered(RESTART, deaths);
            self.update(key, |s| {
                s.restarts += 1;
                s.problem = (deaths > 5).then(|| {
                    format!(
                        "the runner of {} dies again and again; see its log",
                        pool.queues.join(",")
                    )
                });
            });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    fn update(&self, key: (usize, usize), change: impl FnOnce(&mut Slot)) {
        change(self.locked().entry(key).or_default());
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<(usize, usize), Slot>> {
        self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn spawn(pool: &Pool, name: &str) -> std::io::Result<Child> {
    let (program, args) = &pool.command;
    Command::new(program)
        .args(args)
        .args(["--name", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Its own group: a Ctrl-C in the terminal is for us, and we tell it.
        .process_group(0)
        .spawn()
}

/// Waits until the runner ends. When we stop, it is told by the end of its standard input.
async fn watch(child: &mut Child, name: &str, stop: &CancellationToken) {
    // Waiting would close it, and that is the sign to stop.
    let lifeline = child.stdin.take();
    let status = tokio::select! {
        status = child.wait() => status,
        () = stop.cancelled() => {
            drop(lifeline);
            match tokio::time::timeout(STOP, child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    tracing::warn!(runner = %name, "does not stop; killed");
                    let _ = child.start_kill();
                    child.wait().await
                }
            }
        }
    };
    match status {
        Ok(status) if status.success() => tracing::info!(runner = %name, "stopped"),
        Ok(status) => tracing::warn!(runner = %name, %status, "died"),
        Err(error) => tracing::warn!(runner = %name, %error, "cannot be waited for"),
    }
}

async fn give_back(queue: &Queue, name: &str) {
    match queue.release_runner(name).await {
        Ok(0) => {}
        Ok(jobs) => tracing::info!(runner = %name, jobs, "gave back the jobs of a dead runner"),
        Err(error) => {
            tracing::warn!(runner = %name, %error, "its jobs go back when its heartbeat is missed");
        }
    }
}

fn unique_name(queues: &[String]) -> String {
    let pool = queues.first().map_or("idle", String::as_str);
    format!("{pool}-{}-{}", std::process::id(), uuid::Uuid::new_v4().simple())
}
