//! Runners in processes of their own, and who looks after them: starts them, sees them die, gives
//! their jobs back.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_queue::{Fence, Queue};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::history::History;

const PAUSE: Duration = Duration::from_millis(20);

/// What all runners of a fleet have in common.
#[derive(Debug, Clone)]
pub struct Crew {
    /// The program `chaos-worker`.
    pub program: PathBuf,
    pub socket: PathBuf,
    /// Where they write what they do.
    pub effects: PathBuf,
    /// Where they keep what they cannot tell while redis-server is away.
    pub spool: PathBuf,
    pub slots: usize,
    pub heartbeat: Duration,
    pub silence: Duration,
}

/// Keeps so many runners running, each start under a name of its own.
pub struct Fleet {
    shared: Arc<Shared>,
    places: TaskTracker,
    stop: CancellationToken,
}

struct Shared {
    crew: Crew,
    queue: Queue,
    history: History,
    /// By name. A process that was waited for is in here no more.
    alive: Mutex<HashMap<String, Pid>>,
    /// Changes with every death.
    deaths: watch::Sender<u64>,
}

impl Fleet {
    pub fn start(crew: Crew, runners: usize, queue: Queue, history: History) -> Self {
        let shared = Arc::new(Shared {
            crew,
            queue,
            history,
            alive: Mutex::default(),
            deaths: watch::Sender::new(0),
        });
        let (places, stop) = (TaskTracker::new(), CancellationToken::new());
        for n in 0..runners {
            places.spawn(keep(shared.clone(), n, stop.clone()));
        }
        places.close();
        Self { shared, places, stop }
    }

    /// Names of those that run, in order.
    pub fn runners(&self) -> Vec<String> {
        let mut names: Vec<_> = self.shared.alive().keys().cloned().collect();
        names.sort();
        names
    }

    /// Signals a runner, if it is still there.
    pub fn signal(&self, runner: &str, signal: Signal) {
        self.shared.signal(runner, signal);
    }

    /// Kills whoever is to have no jobs any more.
    pub fn fence(&self) -> Arc<dyn Fence> {
        self.shared.clone()
    }

    /// Ends all runners, and waits until they have.
    pub async fn stop(self, patience: Duration) -> anyhow::Result<()> {
        self.stop.cancel();
        tokio::time::timeout(patience, self.places.wait()).await.context("a runner does not end")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // The processes end with their tasks: see kill_on_drop.
        self.stop.cancel();
    }
}

impl Shared {
    fn alive(&self) -> MutexGuard<'_, HashMap<String, Pid>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, runner: &str, signal: Signal) -> bool {
        match self.alive().get(runner) {
            // It fails only when it is dead, which its keeper is about to see.
            Some(pid) => kill(*pid, signal).is_ok(),
            None => false,
        }
    }
}

impl Fence for Shared {
    fn fence<'a>(&'a self, runner: &'a str) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let mut deaths = self.deaths.subscribe();
            self.signal(runner, Signal::SIGKILL);
            while self.alive().contains_key(runner) {
                // Its sender lives in us.
                let _ = deaths.changed().await;
            }
            // What it was not able to say counts before its jobs are given to others.
            self.deliver(runner).await;
        })
    }
}

/// One place of the fleet: always one runner, until it is to stop.
async fn keep(shared: Arc<Shared>, place: usize, stop: CancellationToken) {
    for start in 1.. {
        if stop.is_cancelled() {
            return;
        }
        let name = format!("w{place}-{start}");
        let mut process = match spawn(&shared.crew, &name) {
            Ok(process) => process,
            Err(error) => {
                // Nothing ends any more: the checker says so.
                shared.history.note_death(&format!("{name}: {error:#}"));
                return;
            }
        };
        let pid = process.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        shared.alive().extend(pid.map(|pid| (name.clone(), pid)));
        let stdin = process.stdin.take();
        tokio::select! {
            _ = exited(&mut process) => {}
            () = stop.cancelled() => {
                drop(stdin);
                exited(&mut process).await;
            }
        }
        shared.bury(&name).await;
    }
}

impl Shared {
    /// It is dead: nothing of it runs, and its name is no longer in use.
    async fn bury(&self, name: &str) {
        {
            let mut alive = self.alive();
            alive.remove(name);
            self.history.note_death(name);
        }
        self.deaths.send_modify(|deaths| *deaths += 1);
        self.give_back(name).await;
    }

    /// What it could not say, then what it had.
    async fn give_back(&self, name: &str) {
        self.deliver(name).await;
        while self.queue.release_runner(name).await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn deliver(&self, name: &str) {
        while self.queue.deliver_spool(&self.crew.spool, name).await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn exited(process: &mut Child) {
    // Fails only when it was waited for already, and then it has exited.
    let _ = process.wait().await;
}

fn spawn(crew: &Crew, name: &str) -> anyhow::Result<Child> {
    let ms = |time: Duration| time.as_millis().to_string();
    let path = |path: &Path| path.as_os_str().to_owned();
    Command::new(&crew.program)
        .args(["--name", name, "--slots", &crew.slots.to_string()])
        .args(["--heartbeat-ms", &ms(crew.heartbeat), "--silence-ms", &ms(crew.silence)])
        .args(["--socket".into(), path(&crew.socket), "--effects".into(), path(&crew.effects)])
        .args(["--spool".into(), path(&crew.spool)])
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", crew.program.display()))
}
