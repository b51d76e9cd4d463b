//! The parent's side: a pool of warm children, one evaluation each.
//!
//! ```text
//!   keeper task: has the nursery's zygote fork until `warm` children wait ──▶ idle
//!   evaluate: takes one ──▶ talks ──▶ kills it and lets it be reaped; the keeper makes another
//! ```
//!
//! A child is never used twice, and whatever it says is checked as if it came from a stranger.

mod death;
mod nursery;
mod process;
mod redact;
mod talk;
mod zygote;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhizome_model::{Code, Failure};
use tokio::sync::{Notify, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::wire::Mode;
use crate::{Evaluation, Host, Script, Stop};
use nursery::Nursery;
use process::Child;
use talk::Talk;
pub use talk::Told;

/// Scripts that are evaluated at a time, most of them waiting for a resource. More wait for a place.
const MAX_AT_ONCE: usize = 256;
/// After a child that could not be started.
const PAUSE: Duration = Duration::from_millis(500);
/// Whom a child becomes when we are root: nobody.
const NOBODY: u32 = 65534;

/// How children are started.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// The program whose main calls [`sandbox_main`](crate::sandbox_main).
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Children that wait for a script.
    pub warm: usize,
    /// The user and group that children become when we are root; 65534 when not said.
    pub uid_gid: Option<u32>,
}

/// Evaluates scripts, each in a process of its own.
///
/// Dropping it ends the warm children; [`close`](Self::close) also waits until they are gone.
pub struct Sandboxes {
    pool: Arc<Pool>,
    keeper_end: CancellationToken,
    tasks: TaskTracker,
}

struct Pool {
    nursery: Nursery,
    warm: usize,
    idle: Mutex<VecDeque<Child>>,
    /// One was taken.
    taken: Notify,
    places: Semaphore,
}

impl Pool {
    fn idle(&self) -> MutexGuard<'_, VecDeque<Child>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `warm` children waiting.
    async fn keep(&self) {
        loop {
            let lacking = self.idle().len() < self.warm;
            if !lacking {
                self.taken.notified().await;
                continue;
            }
            match self.nursery.raise().await {
                Ok(child) => self.idle().push_back(child),
                Err(error) => {
                    tracing::warn!(%error, "no sandbox could be started");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn take(&self) -> Result<Child, Failure> {
        let warm = self.idle().pop_front();
        self.taken.notify_one();
        if let Some(mut child) = warm
            && child.alive()
        {
            return Ok(child);
        }
        self.nursery.raise().await.map_err(|error| {
            Failure::new(Code::Internal, format!("no sandbox could be started: {error}"))
        })
    }
}

impl Sandboxes {
    /// Starts the warm children in the background. Call it within a Tokio runtime.
    pub fn new(options: SandboxOptions) -> Self {
        let uid_gid = options.uid_gid.unwrap_or(NOBODY);
        let pool = Arc::new(Pool {
            nursery: Nursery::new(options.program, options.args, uid_gid),
            warm: options.warm,
            idle: Mutex::default(),
            taken: Notify::new(),
            places: Semaphore::new(MAX_AT_ONCE),
        });
        let (tasks, keeper_end) = (TaskTracker::new(), CancellationToken::new());
        let (keeper, end) = (Arc::clone(&pool), keeper_end.clone());
        tasks.spawn(async move { end.run_until_cancelled(keeper.keep()).await });
        Self { pool, keeper_end, tasks }
    }

    /// Evaluates a script to its end: what it declares exists when this returns `Ok`.
    ///
    /// Cancelling, or dropping the future, kills the child.
    pub async fn evaluate(
        &self,
        script: &Script,
        host: &dyn Host,
        cancel: CancellationToken,
    ) -> Result<Evaluation, Stop> {
        self.run(script, Mode::Evaluate, host, cancel).await.map(|told| told.evaluation)
    }

    pub(crate) async fn run(
        &self,
        script: &Script,
        mode: Mode,
        host: &dyn Host,
        cancel: CancellationToken,
    ) -> Result<Told, Stop> {
        let aborted = async {
            cancel.cancelled().await;
            Err(Stop::Aborted)
        };
        tokio::select! {
            biased;
            stopped = aborted => stopped,
            told = Box::pin(self.talk(script, mode, host)) => told,
        }
    }

    async fn talk(&self, script: &Script, mode: Mode, host: &dyn Host) -> Result<Told, Stop> {
        // Before anything is copied: the text is as long as its sender likes.
        let most = script.limits.source;
        if script.source.len() > most {
            let size = script.source.len();
            let message =
                format!("{}: the script has {size} bytes; at most {most} are taken", script.file);
            return Err(Stop::Failed(Failure::new(Code::ScriptLimit, message)));
        }
        let place = self.pool.places.acquire().await;
        let _place = place.expect("the semaphore is never closed");
        let child = self.pool.take().await.map_err(Stop::Failed)?;
        let (told, child) = Talk::new(script, host).run(child, mode).await;
        self.tasks.spawn(child.bury());
        match told {
            Ok(told) => host.finish().await.map(|()| told).map_err(talk::stop),
            Err(stop) => Err(stop),
        }
    }

    /// The processes that wait for a script.
    pub fn idle_pids(&self) -> Vec<u32> {
        self.pool.idle().iter().map(Child::pid).collect()
    }

    /// Ends the warm children and waits until they are gone.
    pub async fn close(self) {
        self.keeper_end.cancel();
        let idle: Vec<_> = self.pool.idle().drain(..).collect();
        for child in idle {
            self.tasks.spawn(child.bury());
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Sandboxes {
    fn drop(&mut self) {
        self.keeper_end.cancel();
    }
}
