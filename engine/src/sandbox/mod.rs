//! The parent's side: a child per evaluation, forked from a zygote.
//!
//! ```text
//!   evaluate: takes the child that waits, or has the nursery's zygote fork one
//!             ──▶ talks ──▶ kills it and lets it be reaped
//! ```
//!
//! One child is forked ahead, when it is calm, and waits in its cage for the next evaluation.
//! A child is never used twice, and whatever it says is checked as if it came from a stranger.

mod death;
mod nursery;
mod process;
mod redact;
mod talk;
mod zygote;

use std::path::PathBuf;

use rhizome_model::{Code, Failure};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::wire::Mode;
use crate::{Evaluation, Host, Script, Stop};
use nursery::Nursery;
use process::Child;
pub use talk::Told;
use talk::{Talk, Untold};

/// Scripts that are evaluated at a time, most of them waiting for a resource. More wait for a place.
const MAX_AT_ONCE: usize = 256;
/// Whom a child becomes when we are root: nobody.
const NOBODY: u32 = 65534;

/// How children are started.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// The program whose main calls [`sandbox_main`](crate::sandbox_main).
    pub program: PathBuf,
    pub args: Vec<String>,
    /// The user and group that children become when we are root; 65534 when not said.
    pub uid_gid: Option<u32>,
}

/// Evaluates scripts, each in a process of its own.
///
/// Dropping it ends what it has started; [`close`](Self::close) also waits until the children are
/// gone.
pub struct Sandboxes {
    nursery: Nursery,
    places: Semaphore,
    burials: TaskTracker,
}

impl Sandboxes {
    /// Starts the process that children are forked from. Call it within a Tokio runtime.
    pub fn new(options: SandboxOptions) -> Self {
        let uid_gid = options.uid_gid.unwrap_or(NOBODY);
        Self {
            nursery: Nursery::new(options.program, options.args, uid_gid),
            places: Semaphore::new(MAX_AT_ONCE),
            burials: TaskTracker::new(),
        }
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
        let place = self.places.acquire().await;
        let _place = place.expect("the semaphore is never closed");
        let mut spare = self.nursery.spare();
        loop {
            let child = match spare.take() {
                Some(child) => child,
                None => self.raise().await?,
            };
            let (told, child) = Talk::new(script, host).run(child, mode).await;
            self.burials.spawn(child.bury());
            match told {
                Ok(told) => return host.finish().await.map(|()| told).map_err(talk::stop),
                Err(Untold::Stop(stop)) => return Err(stop),
                // Then a new one is asked, of which this cannot be said.
                Err(Untold::Unheard) => tracing::debug!("a sandbox died as it was asked"),
            }
        }
    }

    async fn raise(&self) -> Result<Child, Stop> {
        self.nursery.raise().await.map_err(|error| {
            let message = format!("no sandbox could be started: {error}");
            Stop::Failed(Failure::new(Code::Internal, message))
        })
    }

    /// Waits until the children are gone whose evaluations have come to an end.
    pub async fn close(self) {
        self.nursery.close().await;
        self.burials.close();
        self.burials.wait().await;
    }
}
