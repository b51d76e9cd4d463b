//! Cancelling, queued and running, parents and children.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::ensure;
use rhizome_model::{Job, JobState, Outcome};
use rhizome_queue::{CancelReason, QueueError, Retried};

use crate::Bed;
use crate::bed::{done, failure, job, jobs, new_id, now, serve, soon, take};

super::cases! {
    what_has_not_begun_is_cancelled_at_once: "a job that has not begun is cancelled at once, whatever it waits for",
    what_runs_is_told_and_ends_as_cancelled: "a job that runs is told, and however its attempt ends it is not done again",
    children_go_with_their_parent: "cancelling a job cancels the jobs that it asked for, and theirs",
    what_was_cancelled_before_it_began_never_begins: "nothing that was cancelled starts",
}

async fn what_has_not_begun_is_cancelled_at_once(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let retrying = job();
    bed.queue(std::slice::from_ref(&retrying)).await?;
    let mut runner = bed.hire("a", 1).await?;
    take(&mut runner).await?.retry(&failure(), Duration::from_secs(60)).await?;
    let busy = job();
    bed.queue(std::slice::from_ref(&busy)).await?;
    let lease = take(&mut runner).await?;
    let queued = job();
    let delayed = Job { starts_at: Some(now() + 60_000), ..job() };
    let waiting = Job { after: vec![busy.id], ..job() };
    let others = [queued, delayed, waiting];
    bed.queue(&others).await?;
    for job in others.iter().chain([&retrying]) {
        ensure!(bed.cancel(job.id).await? == JobState::Cancelled);
        ensure!(bed.cancel(job.id).await? == JobState::Cancelled, "the second time");
        ensure!(bed.outcome(job.id).await? == Outcome::Cancelled);
    }
    ensure!(bed.record(retrying.id).await?.attempts == 1);
    lease.finish(&done()).await?;
    drop(lease);
    bed.nothing_comes(&mut runner).await?;
    ensure!(bed.cancel(busy.id).await? == JobState::Succeeded, "what ended stays as it is");
    let unknown = bed.cancel(new_id()).await;
    ensure!(matches!(unknown, Err(QueueError::NoSuchJob(_))), "{unknown:?}");
    Ok(())
}

async fn what_runs_is_told_and_ends_as_cancelled(bed: Bed) -> anyhow::Result<()> {
    let mut runner = bed.hire("a", 1).await?;
    for end in ["says so", "fails", "gives back", "dies"] {
        let job = job();
        bed.queue(std::slice::from_ref(&job)).await?;
        let lease = take(&mut runner).await?;
        ensure!(bed.cancel(job.id).await? == JobState::Running);
        let reason = soon("the cancellation", lease.stopped()).await?;
        ensure!(reason == CancelReason::Requested);
        match end {
            "says so" => lease.finish(&Outcome::Cancelled).await?,
            "fails" => {
                let retried = lease.retry(&failure(), Duration::ZERO).await?;
                ensure!(retried == Retried::Exhausted);
            }
            "gives back" => lease.release().await?,
            _ => drop(lease),
        }
        ensure!(bed.outcome(job.id).await? == Outcome::Cancelled, "its runner {end}");
        let record = bed.record(job.id).await?;
        ensure!((record.state, record.attempts) == (JobState::Cancelled, 1), "its runner {end}");
    }
    bed.nothing_comes(&mut runner).await
}

async fn children_go_with_their_parent(bed: Bed) -> anyhow::Result<()> {
    let mut runner = bed.hire("a", 2).await?;
    let parent = job();
    bed.queue(std::slice::from_ref(&parent)).await?;
    let parents = take(&mut runner).await?;
    let child = || Job { parent: Some(parent.id), ..job() };
    let runs = child();
    bed.queue(std::slice::from_ref(&runs)).await?;
    let running = take(&mut runner).await?;
    ensure!(running.job().id == runs.id);
    let (ready, delayed) = (child(), Job { starts_at: Some(now() + 60_000), ..child() });
    let grandchild = Job { parent: Some(ready.id), after: vec![runs.id], ..job() };
    let stranger = job();
    bed.queue(&[ready.clone(), delayed.clone(), grandchild.clone(), stranger.clone()]).await?;
    ensure!(bed.cancel(parent.id).await? == JobState::Running);
    for id in [ready.id, delayed.id, grandchild.id] {
        ensure!(bed.state(id).await? == JobState::Cancelled);
    }
    for lease in [&parents, &running] {
        soon("the cancellation", lease.stopped()).await?;
    }
    for lease in [parents, running] {
        lease.finish(&Outcome::Cancelled).await?;
    }
    serve(&mut runner, stranger.id).await
}

async fn what_was_cancelled_before_it_began_never_begins(bed: Bed) -> anyhow::Result<()> {
    const JOBS: usize = 150;
    let all = jobs(JOBS, job);
    bed.queue(&all).await?;
    let mut runner = bed.hire("a", 4).await?;
    let mut begun = HashSet::new();
    for _ in 0..10 {
        let lease = take(&mut runner).await?;
        begun.insert(lease.job().id);
        lease.finish(&done()).await?;
    }
    let cancelling = {
        let (bed, all) = (bed.clone(), all.clone());
        tokio::spawn(async move {
            let mut never = HashSet::new();
            // From the last to the first: they meet in the middle.
            for job in all.iter().rev() {
                if bed.cancel(job.id).await? == JobState::Cancelled {
                    never.insert(job.id);
                }
            }
            anyhow::Ok(never)
        })
    };
    while let Ok(Some(lease)) =
        tokio::time::timeout(Duration::from_millis(300), runner.next()).await
    {
        begun.insert(lease.job().id);
        lease.finish(&done()).await?;
        tokio::task::yield_now().await;
    }
    let never = cancelling.await??;
    ensure!(!never.is_empty(), "none was cancelled");
    ensure!(never.is_disjoint(&begun), "{:?}", never.intersection(&begun).collect::<Vec<_>>());
    for job in &all {
        let record = bed.record(job.id).await?;
        ensure!(record.state.is_ended(), "job {} is {:?}", job.id, record.state);
        ensure!(!never.contains(&job.id) || record.attempts == 0);
    }
    Ok(())
}
