//! Crash points of a runner: from its opening to its farewell.

use std::time::Duration;

use futures_util::StreamExt as _;
use rhizome_chaos::history::Answer;
use rhizome_chaos::plan::Plan;
use rhizome_model::api::OutputChunk;
use rhizome_model::{Code, Event, Failure, Job, JobState, Outcome, What as Happened};
use rhizome_queue::{Lease, QueueError, Retried, Runner};
use serde_json::json;

use crate::bed::{Bed, fail_everywhere, linger, options, until};

fn failure() -> Failure {
    Failure::new(Code::ToolFailed, "as it was planned")
}

/// A job that a runner of the client has.
async fn held(bed: &mut Bed, job: Job) -> anyhow::Result<(Runner, Lease)> {
    bed.given(&job).await?;
    // Without a free slot, it asks for nothing by itself.
    let mut runner = bed.far_runner(1).await?;
    let lease = bed.take(&mut runner).await?;
    Ok((runner, lease))
}

/// The client goes on with what it has, if it lives.
pub async fn end(bed: &Bed, lease: &Lease, alive: bool) -> anyhow::Result<()> {
    if alive {
        bed.ended(lease);
        bed.finish(lease).await?;
        bed.told(lease, Answer::Finished(JobState::Succeeded));
    }
    Ok(())
}

#[tokio::test]
async fn open_and_claim() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        bed.given(&job).await?;
        bed.will_run();
        let (far, options) = (bed.far.clone(), options("far", 2));
        let step = async {
            let mut runner = far.runner(options).await?;
            let lease = runner.next().await;
            Ok::<_, QueueError>((runner, lease))
        };
        if let Some((_runner, Some(lease))) = bed.step(step).await? {
            bed.began(&lease);
            end(bed, &lease, true).await?;
        }
        Ok(())
    })
    .await;
}

/// The job comes while the runner waits for one.
#[tokio::test]
async fn wait_and_claim() {
    fail_everywhere(async |bed| {
        let jobs = [bed.job()?, bed.job()?];
        let mut runner = bed.far_runner(2).await?;
        bed.submitting(&jobs);
        let near = bed.near.clone();
        let step = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let answers = near.submit(&jobs).await?;
            let leases = [runner.next().await, runner.next().await];
            Ok::<_, QueueError>((answers, leases))
        };
        match bed.step(step).await? {
            Some((answers, leases)) => {
                bed.submitted(&jobs, Some(answers))?;
                for lease in leases.into_iter().flatten() {
                    bed.began(&lease);
                    end(bed, &lease, true).await?;
                }
            }
            None => {
                bed.submitted(&jobs, None)?;
                bed.submitting(&jobs);
                let answers = bed.near.submit(&jobs).await?;
                bed.submitted(&jobs, Some(answers))?;
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn claim_what_is_too_late() {
    fail_everywhere(async |bed| {
        let job = Job { expires_at: Some(1), ..bed.job()? };
        bed.given(&job).await?;
        bed.will_run();
        let (far, options) = (bed.far.clone(), options("far", 2));
        let (near, proxy) = (bed.near.clone(), bed.proxy.clone());
        let step = async {
            let runner = far.runner(options).await?;
            let ended = until("it is expired", async || {
                near.job(job.id).await.is_ok_and(|r| r.is_none_or(|r| r.state.is_ended()))
            });
            let _ = ended.await;
            linger(&proxy).await;
            Ok::<_, QueueError>(runner)
        };
        bed.step(step).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn finish() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        let (_runner, lease) = held(bed, job).await?;
        bed.ended(&lease);
        if bed.step(lease.finish(&Outcome::Succeeded(json!(1)))).await?.is_some() {
            bed.told(&lease, Answer::Finished(JobState::Succeeded));
        }
        Ok(())
    })
    .await;
}

/// Together with events: they are appended once.
#[tokio::test]
async fn finish_with_events() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        let (_runner, lease) = held(bed, job).await?;
        let deployment = "1/chaos".parse()?;
        let what = Happened::Log { message: "done".into() };
        let version = rhizome_model::Version(1);
        let event = Event { at: 1, deployment, version, node: None, what };
        bed.ended(&lease);
        let done = Outcome::Succeeded(json!(1));
        let step = lease.finish_with(&done, None, std::slice::from_ref(&event));
        if bed.step(step).await?.is_some() {
            bed.told(&lease, Answer::Finished(JobState::Succeeded));
            bed.is_there_once(&event).await?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn retry_later() {
    fail_everywhere(async |bed| {
        let job = bed.planned(&Plan { failures: 1, ..Plan::default() })?;
        let (_runner, lease) = held(bed, job).await?;
        bed.ended(&lease);
        let retried = bed.step(lease.retry(&failure(), Duration::from_millis(5), &[])).await?;
        if let Some(retried) = retried {
            anyhow::ensure!(retried == Retried::Later, "{retried:?}");
            bed.told(&lease, Answer::Retried);
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn retry_for_the_last_time() {
    fail_everywhere(async |bed| {
        let plan = Plan { failures: 9, ..Plan::default() };
        let job = Job { max_attempts: 1, ..bed.planned(&plan)? };
        let (_runner, lease) = held(bed, job).await?;
        bed.ended(&lease);
        let retried = bed.step(lease.retry(&failure(), Duration::from_millis(5), &[])).await?;
        if let Some(retried) = retried {
            anyhow::ensure!(retried == Retried::Exhausted, "{retried:?}");
            bed.told(&lease, Answer::Exhausted);
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn print_and_progress() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        let (_runner, lease) = held(bed, job.clone()).await?;
        let chunk = |n: u32| OutputChunk::Stdout { data: n.to_string() };
        let step = async {
            for n in 0..3 {
                lease.print(&chunk(n)).await?;
                lease.progress(&json!(n)).await?;
            }
            Ok::<_, QueueError>(())
        };
        let alive = bed.step(step).await?.is_some();
        end(bed, &lease, alive).await?;
        if alive {
            let output: Vec<_> = bed.near.output(job.id).collect().await;
            let printed =
                output.iter().flatten().filter(|c| matches!(c, OutputChunk::Stdout { .. }));
            let printed: Vec<_> = printed.cloned().collect();
            anyhow::ensure!(printed == [chunk(0), chunk(1), chunk(2)], "{printed:?}");
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn release() {
    fail_everywhere(async |bed| {
        let job = bed.planned(&Plan { releases: true, ..Plan::default() })?;
        let (_runner, lease) = held(bed, job).await?;
        bed.ended(&lease);
        if bed.step(lease.release()).await?.is_some() {
            bed.told(&lease, Answer::Released);
        }
        Ok(())
    })
    .await;
}

/// Whoever drops a lease gives it back, and the attempt counts.
#[tokio::test]
async fn drop_without_an_end() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        bed.given(&job).await?;
        // A free slot: it asks for more at the same time as it gives back.
        let mut runner = bed.far_runner(2).await?;
        let lease = bed.take(&mut runner).await?;
        bed.ended(&lease);
        bed.told(&lease, Answer::Dropped);
        let step = async {
            drop(lease);
            Ok::<_, QueueError>(runner.next().await)
        };
        if let Some(Some(lease)) = bed.step(step).await? {
            anyhow::ensure!(lease.attempt == 2, "attempt {}", lease.attempt);
            bed.began(&lease);
            end(bed, &lease, true).await?;
        }
        Ok(())
    })
    .await;
}

/// Jobs that were claimed and never asked for go back untried.
#[tokio::test]
async fn close() {
    fail_everywhere(async |bed| {
        let runner = bed.far_runner(2).await?;
        let jobs = [bed.job()?, bed.job()?];
        for job in &jobs {
            bed.given(job).await?;
        }
        let near = bed.near.clone();
        for job in &jobs {
            until("it is claimed", async || {
                near.job(job.id).await.is_ok_and(|r| r.is_some_and(|r| r.runner.is_some()))
            })
            .await?;
        }
        let closed = async {
            runner.close().await;
            Ok::<_, QueueError>(())
        };
        bed.step(closed).await?;
        Ok(())
    })
    .await;
}
