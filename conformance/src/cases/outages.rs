//! The server is away.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use rhizome_model::{Event, Job, JobState, Version, What};

use crate::Bed;
use crate::bed::{QUEUE, done, failure, job, jobs, now, soon, take, until};

super::cases! {
    an_end_during_a_freeze_waits_on_disk: "while the server stands still jobs run on; their outcomes wait on disk and are delivered once" [Outages],
    an_end_during_an_outage_waits_on_disk: "while the server is gone jobs run on; their outcomes wait on disk and are delivered once" [Outages],
    a_dead_runners_last_words_count: "what a runner ended during an outage is not done again though it died before it could say so" [Outages],
    restarts_lose_and_double_nothing: "a server that is killed and started again, and again, loses and doubles nothing" [Outages],
    a_periodic_job_outlives_a_restart: "a periodic job comes once per slot through a restart" [Outages],
    followers_outlive_a_restart: "who follows events or waits for an end goes on after a restart" [Outages],
}

/// Longer than a runner waits for an answer before it writes to disk.
const FREEZE: Duration = Duration::from_secs(3);

async fn an_end_during_a_freeze_waits_on_disk(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 3).await?;
    let mut all = jobs(3, job);
    // One that is more than the usual, and ends on a way of its own.
    all[2].unique = Some("one".into());
    bed.queue(&all).await?;
    let held = [take(&mut runner).await?, take(&mut runner).await?, take(&mut runner).await?];
    bed.freeze_server().await?;
    let frozen = Instant::now();
    let outcome = done();
    let ends = futures_util::future::join_all(held.iter().map(|lease| lease.finish(&outcome)));
    let ended = tokio::time::timeout(FREEZE, ends).await;
    let spooled = bed.spooled("a").await?;
    tokio::time::sleep(FREEZE.saturating_sub(frozen.elapsed())).await;
    bed.thaw_server().await?;
    for end in ended.context("nothing ends while the server stands still")? {
        end?;
    }
    ensure!(spooled > 0, "no outcome is on disk");
    for job in &all {
        ensure!(bed.outcome(job.id).await? == done());
        ensure!(bed.record(job.id).await?.attempts == 1);
    }
    is_delivered(&bed, "a").await?;
    ensure!(bed.ended(QUEUE, JobState::Succeeded).await? == 3);
    drop(held);
    bed.nothing_comes(&mut runner).await
}

async fn is_delivered(bed: &Bed, runner: &str) -> anyhow::Result<()> {
    until("nothing waits on disk", || async { Ok(bed.spooled(runner).await? == 0) }).await
}

async fn an_end_during_an_outage_waits_on_disk(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 2).await?;
    let all = [job(), Job { max_attempts: 2, ..job() }];
    bed.queue(&all).await?;
    let (first, second) = (take(&mut runner).await?, take(&mut runner).await?);
    bed.kill_server().await?;
    let (outcome, failure, pause) = (done(), failure(), Duration::from_millis(10));
    let (ended, failed) = tokio::join!(
        soon("an end", first.finish(&outcome)),
        soon("a failure", second.retry(&failure, pause))
    );
    ended??;
    failed??;
    ensure!(bed.spooled("a").await? == 2, "what ended is not on disk");
    drop((first, second));
    bed.start_server().await?;
    ensure!(bed.outcome(all[0].id).await? == done());
    let lease = take(&mut runner).await?;
    ensure!((lease.job().id, lease.attempt()) == (all[1].id, 2));
    lease.finish(&done()).await?;
    is_delivered(&bed, "a").await?;
    ensure!(bed.ended(QUEUE, JobState::Succeeded).await? == 2);
    bed.nothing_comes(&mut runner).await
}

async fn a_dead_runners_last_words_count(bed: Bed) -> anyhow::Result<()> {
    let mut dead = bed.hire("dead", 2).await?;
    let all = jobs(2, job);
    bed.queue(&all).await?;
    let (first, second) = (take(&mut dead).await?, take(&mut dead).await?);
    ensure!(first.job().id == all[0].id);
    bed.kill_server().await?;
    soon("an end", first.finish(&done())).await??;
    drop(dead);
    bed.start_server().await?;
    bed.bury("dead").await?;
    let mut alive = bed.hire("alive", 2).await?;
    let lease = take(&mut alive).await?;
    ensure!((lease.job().id, lease.attempt()) == (all[1].id, 2));
    bed.nothing_comes(&mut alive).await?;
    let record = bed.record(all[0].id).await?;
    ensure!((record.state, record.attempts) == (JobState::Succeeded, 1));
    ensure!(bed.spooled("dead").await? == 0);
    lease.finish(&done()).await?;
    drop(second);
    Ok(())
}

async fn restarts_lose_and_double_nothing(bed: Bed) -> anyhow::Result<()> {
    const JOBS: usize = 200;
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 4).await?;
    let working = tokio::spawn(async move {
        let mut ended = HashSet::new();
        while ended.len() < JOBS {
            let lease = take(&mut runner).await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
            ensure!(lease.attempt() == 1, "attempt {}", lease.attempt());
            lease.finish(&done()).await?;
            ensure!(ended.insert(lease.job().id), "job {} came twice", lease.job().id);
        }
        anyhow::Ok(runner)
    });
    let all = jobs(JOBS, job);
    let submitting = {
        let (bed, all) = (bed.clone(), all.clone());
        tokio::spawn(async move {
            for some in all.chunks(2) {
                // The answer may be lost, and the same said again.
                bed.submit(some).await?;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            anyhow::Ok(())
        })
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        bed.kill_server().await?;
        bed.start_server().await?;
    }
    soon("all submissions", submitting).await???;
    for job in &all {
        ensure!(bed.outcome(job.id).await? == done());
    }
    let mut runner = soon("the end of the work", working).await???;
    bed.nothing_comes(&mut runner).await?;
    ensure!(bed.ended(QUEUE, JobState::Succeeded).await? == JOBS as u64);
    Ok(())
}

async fn a_periodic_job_outlives_a_restart(bed: Bed) -> anyhow::Result<()> {
    let _one = bed.maintain();
    let _two = bed.maintain();
    let mut runner = bed.hire("a", 1).await?;
    let every = Duration::from_secs(1);
    let periodic = rhizome_queue::Periodic { name: "one".into(), every, job: job() };
    bed.set_periodic(&[periodic]).await?;
    let mut slots = Vec::new();
    for n in 0..3 {
        let lease = take(&mut runner).await?;
        slots.push(bed.record(lease.job().id).await?.submitted_at / 1000);
        if n == 0 {
            bed.kill_server().await?;
            bed.start_server().await?;
        }
        lease.finish(&done()).await?;
    }
    // A slot in which nobody was there is left out.
    ensure!(slots.windows(2).all(|pair| pair[0] < pair[1]), "{slots:?}");
    ensure!(slots[2] - slots[0] <= 4, "{slots:?}");
    Ok(())
}

async fn followers_outlive_a_restart(bed: Bed) -> anyhow::Result<()> {
    let event = |message: &str| -> anyhow::Result<Event> {
        let what = What::Log { message: message.into() };
        Ok(Event {
            at: now(),
            deployment: "1/demo".parse()?,
            version: Version(1),
            node: None,
            what,
        })
    };
    let mut runner = bed.hire("a", 1).await?;
    let job = job();
    bed.queue(std::slice::from_ref(&job)).await?;
    let waiting = {
        let (bed, id) = (bed.clone(), job.id);
        tokio::spawn(async move { bed.wait(id).await })
    };
    let lease = take(&mut runner).await?;
    let mut events = bed.follow(None);
    bed.publish(&[event("before")?]).await?;
    soon("an event", events.next()).await?.transpose()?;
    bed.kill_server().await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    bed.start_server().await?;
    let after = event("after")?;
    bed.publish(std::slice::from_ref(&after)).await?;
    let (_, seen) = soon("an event", events.next()).await?.transpose()?.context("it ended")?;
    ensure!(seen == after);
    ensure!(!waiting.is_finished());
    lease.finish(&done()).await?;
    ensure!(soon("the outcome", waiting).await??? == done());
    Ok(())
}
