//! Pausing, resuming, draining.

use std::time::Duration;

use anyhow::ensure;
use rhizome_model::api::PoolMode;
use rhizome_model::{Job, JobState};

use tokio_util::sync::CancellationToken;

use crate::Bed;
use crate::bed::{QUEUE, done, job, jobs, now, serve, soon, take, until};

super::cases! {
    nothing_starts_in_a_paused_queue: "from when a pause was answered nothing starts, what runs goes on, and a resume starts it again",
    a_pause_is_of_one_queue: "a pause of one queue does not hold up another of the same runner",
    a_drained_runner_takes_nothing: "a runner that drains takes nothing, ends what it has, and what it gives back was not tried",
}

async fn nothing_starts_in_a_paused_queue(bed: Bed) -> anyhow::Result<()> {
    for mode in [PoolMode::Paused, PoolMode::Drained] {
        pause(&bed, mode).await?;
    }
    Ok(())
}

async fn pause(bed: &Bed, mode: PoolMode) -> anyhow::Result<()> {
    const JOBS: usize = 1000;
    let all = jobs(JOBS, job);
    let (mut working, stop) = (tokio::task::JoinSet::new(), CancellationToken::new());
    // One takes few jobs at a time, the other many.
    for slots in [2, 40] {
        let mut runner = bed.hire(&format!("{mode:?}-{slots}"), slots).await?;
        let stop = stop.clone();
        working.spawn(async move {
            let mut attempts = tokio::task::JoinSet::new();
            while let Some(Some(lease)) = stop.run_until_cancelled(runner.next()).await {
                attempts.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    // What does not end is missed below.
                    let _ = lease.finish(&done()).await;
                });
                while attempts.try_join_next().is_some() {}
            }
            attempts.join_all().await;
            runner.close().await;
        });
    }
    let submitting = {
        let (bed, all) = (bed.clone(), all.clone());
        tokio::spawn(async move {
            for some in all.chunks(25) {
                bed.queue(some).await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            anyhow::Ok(())
        })
    };
    tokio::time::sleep(Duration::from_millis(60)).await;
    bed.set_mode(QUEUE, mode).await?;
    let paused = now();
    submitting.await??;
    until("what runs has ended", || async {
        Ok(bed.stats().await?.iter().all(|stats| stats.running == 0))
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let stats = bed.stats().await?;
    let stats = stats.iter().find(|stats| stats.queue == QUEUE);
    ensure!(stats.is_some_and(|s| s.mode == mode && s.ready > 0), "{stats:?}");
    let mut begun = 0;
    for job in &all {
        let record = bed.record(job.id).await?;
        begun += usize::from(record.started_at.is_some());
        ensure!(record.started_at <= Some(paused), "{:?} after {paused}", record.started_at);
    }
    ensure!(begun < JOBS, "all had begun before the pause");
    bed.set_mode(QUEUE, PoolMode::Running).await?;
    for job in &all {
        bed.outcome(job.id).await?;
    }
    stop.cancel();
    soon("the end of the runners", working.join_all()).await?;
    Ok(())
}

async fn a_pause_is_of_one_queue(bed: Bed) -> anyhow::Result<()> {
    let mut runner = bed.hire_for("a", 1, &[QUEUE, "machine"]).await?;
    bed.set_mode(QUEUE, PoolMode::Paused).await?;
    let (held, goes) = (job(), Job { queue: "machine".into(), ..job() });
    bed.queue(&[held.clone(), goes.clone()]).await?;
    serve(&mut runner, goes.id).await?;
    bed.nothing_comes(&mut runner).await?;
    ensure!(bed.state(held.id).await? == JobState::Queued);
    bed.cancel(held.id).await?;
    let later = job();
    bed.queue(std::slice::from_ref(&later)).await?;
    bed.set_mode(QUEUE, PoolMode::Running).await?;
    serve(&mut runner, later.id).await
}

async fn a_drained_runner_takes_nothing(bed: Bed) -> anyhow::Result<()> {
    let mut old = bed.hire("old", 3).await?;
    let mut all = jobs(3, || Job { max_attempts: 1, ..job() });
    bed.queue(&all[..1]).await?;
    let kept = take(&mut old).await?;
    bed.queue(&all[1..]).await?;
    // It may have claimed them by now, and may not: nobody has asked it for them.
    tokio::time::sleep(Duration::from_millis(50)).await;
    old.drain();
    ensure!(soon("the end of its jobs", old.next()).await?.is_none());
    let late = job();
    bed.queue(std::slice::from_ref(&late)).await?;
    kept.finish(&done()).await?;
    soon("the end of the runner", old.close()).await?;
    all.push(late);
    let mut new = bed.hire("new", 1).await?;
    for job in &all[1..] {
        let lease = take(&mut new).await?;
        ensure!((lease.job().id, lease.attempt()) == (job.id, 1));
        lease.finish(&done()).await?;
    }
    ensure!(bed.state(all[0].id).await? == JobState::Succeeded);
    Ok(())
}
