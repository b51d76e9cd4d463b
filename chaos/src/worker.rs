//! A runner that does what the plans of its jobs say, and writes down what it does.

use std::time::Duration;

use anyhow::Context as _;
use rhizome_model::api::OutputChunk;
use rhizome_model::{Code, Failure, JobState, Outcome};
use rhizome_queue::{CancelReason, Lease, QueueError, Retried, Runner};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::history::{Answer, Effects, What};
use crate::plan::Plan;

/// Attempts that are under way when it is to stop have this long.
const DRAIN: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(100);

/// Takes jobs until it is told to stop, then ends what is under way.
pub async fn work(
    mut runner: Runner,
    effects: Effects,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let attempts = TaskTracker::new();
    while let Some(Some(lease)) = stop.run_until_cancelled(runner.next()).await {
        attempts.spawn(attempt(lease, runner.name().to_owned(), effects.clone()));
    }
    runner.drain();
    attempts.close();
    let ended = tokio::time::timeout(DRAIN, attempts.wait()).await;
    runner.close().await;
    ended.context("attempts did not end in time")
}

async fn attempt(lease: Lease, runner: String, effects: Effects) {
    let attempt = Attempt { lease, runner, effects };
    if let Err(error) = attempt.run().await {
        // The checker finds an attempt that says nothing more: it must be seen.
        say(&error);
        std::process::abort();
    }
}

#[expect(clippy::print_stderr, reason = "the last words of a test program")]
fn say(error: &anyhow::Error) {
    eprintln!("a runner of the test cannot go on: {error:#}");
}

/// Why the work of an attempt was over.
enum Over {
    Done,
    Cancelled,
    Lost,
}

struct Attempt {
    lease: Lease,
    runner: String,
    effects: Effects,
}

impl Attempt {
    async fn run(self) -> anyhow::Result<()> {
        let plan = Plan::of(&self.lease.job)?;
        let number = self.lease.attempt;
        let pid = std::process::id();
        self.note(What::Began { attempt: number, runner: self.runner.clone(), pid })?;
        if plan.abort_in == Some(number) {
            tokio::time::sleep(plan.work() / 2).await;
            std::process::abort();
        }
        let over = self.work(&plan).await;
        self.note(What::Ended { attempt: number, runner: self.runner.clone() })?;
        let answer = match over {
            Over::Lost => Answer::Lost,
            Over::Cancelled => self.finish(Outcome::Cancelled).await,
            Over::Done => self.end(&plan).await,
        };
        self.note(What::Told { attempt: number, runner: self.runner.clone(), answer })
    }

    async fn work(&self, plan: &Plan) -> Over {
        let cancelled = self.lease.cancelled();
        let work = async {
            for n in 0..plan.prints {
                tokio::time::sleep(plan.work() / plan.prints).await;
                let chunk = OutputChunk::Stdout { data: n.to_string() };
                // Whether it is printed decides nothing: a lost lease is told at the end.
                let _ = self.lease.print(&chunk).await;
            }
            if plan.prints == 0 {
                tokio::time::sleep(plan.work()).await;
            }
        };
        match cancelled.run_until_cancelled(work).await {
            Some(()) => Over::Done,
            None if self.lease.cancel_reason() == Some(CancelReason::Lost) => Over::Lost,
            None => Over::Cancelled,
        }
    }

    async fn end(&self, plan: &Plan) -> Answer {
        let failure = Failure::new(Code::ToolFailed, "as it was planned");
        if plan.drop_in == Some(self.lease.attempt) {
            return Answer::Dropped;
        }
        if plan.releases && fastrand::bool() {
            return match self.lease.release().await {
                Ok(()) => Answer::Released,
                Err(error) => refused(&error),
            };
        }
        if self.lease.attempt <= plan.failures {
            return match self.lease.retry(&failure, RETRY.mul_f64(fastrand::f64()), &[]).await {
                Ok(Retried::Later) => Answer::Retried,
                Ok(Retried::Exhausted) => Answer::Exhausted,
                Err(error) => refused(&error),
            };
        }
        let attempt = json!(self.lease.attempt);
        self.finish(if plan.fails { Outcome::Failed(failure) } else { Outcome::Succeeded(attempt) })
            .await
    }

    async fn finish(&self, outcome: Outcome) -> Answer {
        match self.lease.finish(&outcome).await {
            Ok(()) => Answer::Finished(match outcome {
                Outcome::Succeeded(_) => JobState::Succeeded,
                Outcome::Failed(_) => JobState::Failed,
                Outcome::Cancelled => JobState::Cancelled,
            }),
            Err(error) => refused(&error),
        }
    }

    fn note(&self, what: What) -> anyhow::Result<()> {
        self.effects.note(self.lease.job.id, what)
    }
}

fn refused(error: &QueueError) -> Answer {
    match error {
        QueueError::Fenced => Answer::Fenced,
        _ => Answer::Unavailable,
    }
}
