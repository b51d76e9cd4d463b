//! Following a submission to its end, through whatever happens to coord meanwhile.
//!
//! ```text
//!   events after N ──▶ event ──▶ Progress ──▶ settled? ──▶ last look at the whole ──▶ done
//!        ▲               │ coord away, or silent for long
//!        └── back-off ◀──┘   (resumed after the last event that was seen)
//! ```

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use rhizome_model::api::{DeploymentView, Submitted};
use rhizome_model::{Backoff, Class, Code, Failure};
use rhizome_service::random::jittered;

use crate::coord::Coord;
use crate::progress::{Goal, Heard, Progress};
use crate::render::reporter::Reporter;

const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// After so long without an event coord is asked why: a connection that died quietly is found, too.
const SILENCE: Duration = Duration::from_secs(5);

/// How a submission ended.
#[derive(Debug)]
pub struct Ended {
    pub progress: Progress,
    pub view: DeploymentView,
}

/// Waits until every task is settled.
pub async fn follow(
    coord: &Coord,
    submitted: &Submitted,
    goal: Goal,
    reporter: &mut Reporter,
) -> Result<Ended, Failure> {
    let mut follower = Follower {
        coord,
        submitted,
        progress: Progress::new(submitted, goal),
        after: submitted.after,
        attempt: 0,
        reporter,
    };
    while !follower.progress.is_settled() {
        match follower.listen().await {
            Ok(()) => {}
            Err(failure) => follower.pause(failure).await?,
        }
    }
    let view = loop {
        match coord.deployment(&submitted.deployment).await {
            Ok(view) => break view,
            Err(failure) => follower.pause(failure).await?,
        }
    };
    follower.reporter.done();
    Ok(Ended { progress: follower.progress, view })
}

struct Follower<'a> {
    coord: &'a Coord,
    submitted: &'a Submitted,
    progress: Progress,
    /// The last event that was seen.
    after: u64,
    /// Failures since the last sign of life.
    attempt: u32,
    reporter: &'a mut Reporter,
}

impl Follower<'_> {
    /// One connection: returns when the end is reached, or with what broke it.
    async fn listen(&mut self) -> Result<(), Failure> {
        let mut events = pin!(self.coord.events(&self.submitted.deployment, self.after).await?);
        self.alive();
        while !self.progress.is_settled() {
            let Ok(next) = tokio::time::timeout(SILENCE, events.next()).await else {
                self.look().await?;
                continue;
            };
            let numbered = next
                .ok_or_else(|| Failure::new(Code::Unavailable, "coord closed the connection"))??;
            self.alive();
            self.after = numbered.id;
            self.reporter.event(&numbered.event);
            if self.progress.apply(&numbered.event) == Heard::Whole {
                self.look().await?;
            }
        }
        Ok(())
    }

    /// Asks coord for the whole.
    async fn look(&mut self) -> Result<(), Failure> {
        let view = self.coord.deployment(&self.submitted.deployment).await?;
        if !self.progress.adopt(&view) {
            return Err(Failure::new(
                Code::Cancelled,
                format!(
                    "version {} of {} took the place of version {}, which had not ended",
                    view.version, view.deployment, self.progress.version
                ),
            ));
        }
        self.reporter.waiting(&view);
        Ok(())
    }

    fn alive(&mut self) {
        if self.attempt > 0 {
            self.reporter.back();
            self.attempt = 0;
        }
    }

    /// Waits before the next attempt. What would fail again just so is returned.
    async fn pause(&mut self, failure: Failure) -> Result<(), Failure> {
        if failure.code.class() != Class::Unreachable {
            return Err(failure);
        }
        if self.attempt == 0 {
            self.reporter.away(&failure);
        }
        self.attempt = self.attempt.saturating_add(1);
        tokio::time::sleep(jittered(BACKOFF, self.attempt)).await;
        Ok(())
    }
}
