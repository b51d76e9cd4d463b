//! Jobs of one order, one at a time.

use std::time::Duration;

use anyhow::ensure;
use rhizome_model::{Job, JobState, Priority};
use rhizome_queue::Retried;

use crate::Bed;
use crate::bed::{done, failure, job, job_of, now, serve, take};

super::cases! {
    an_order_is_one_at_a_time: "jobs of one order run one at a time, as they were submitted, and others beside them",
    an_order_outlives_a_cancelled_job: "an order goes on past a job that was cancelled, first, in the middle or last",
    an_order_waits_for_a_retry: "an order waits while its first job is to be tried again",
    an_order_waits_for_a_delay: "an order waits for a job whose time has not come",
    an_order_outlives_a_runner: "an order stays one when a runner dies, and goes on when its job is set aside",
}

/// Of several accounts and priorities: the order counts.
fn in_order(number: u64) -> Vec<Job> {
    let one = |n: u64| {
        let priority = Priority::ALL[2 - (n % 3) as usize];
        Job { order: Some("disk".into()), priority, ..job_of(1 + n % 2) }
    };
    (0..number).map(one).collect()
}

async fn an_order_is_one_at_a_time(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 4).await?;
    let all = in_order(5);
    bed.queue(&all).await?;
    let other = Job { order: Some("another".into()), ..job() };
    for (n, job) in all.iter().enumerate() {
        let lease = take(&mut runner).await?;
        ensure!(lease.job().id == job.id, "job {n} was expected");
        if n == 1 {
            bed.queue(std::slice::from_ref(&other)).await?;
            serve(&mut runner, other.id).await?;
        }
        bed.nothing_comes(&mut runner).await?;
        lease.finish(&done()).await?;
    }
    // It begins anew.
    let again = in_order(1);
    bed.queue(&again).await?;
    serve(&mut runner, again[0].id).await
}

async fn an_order_outlives_a_cancelled_job(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 4).await?;
    let all = in_order(6);
    bed.queue(&all).await?;
    let lease = take(&mut runner).await?;
    for at in [2, 3, 5] {
        ensure!(bed.cancel(all[at].id).await? == JobState::Cancelled);
    }
    // The first one runs, and is cancelled.
    bed.cancel(all[0].id).await?;
    bed.nothing_comes(&mut runner).await?;
    drop(lease);
    serve(&mut runner, all[1].id).await?;
    serve(&mut runner, all[4].id).await?;
    // The first one has not begun.
    drop(runner);
    bed.bury("a").await?;
    let all = in_order(3);
    bed.queue(&all).await?;
    bed.cancel(all[0].id).await?;
    let mut runner = bed.hire("b", 4).await?;
    serve(&mut runner, all[1].id).await?;
    serve(&mut runner, all[2].id).await
}

async fn an_order_waits_for_a_retry(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 4).await?;
    let all = in_order(3);
    bed.queue(&all).await?;
    for attempt in 1..=2 {
        let lease = take(&mut runner).await?;
        ensure!((lease.job().id, lease.attempt()) == (all[0].id, attempt));
        let retried = lease.retry(&failure(), Duration::from_millis(150)).await?;
        ensure!(retried == Retried::Later);
        drop(lease);
        bed.nothing_comes(&mut runner).await?;
    }
    let lease = take(&mut runner).await?;
    ensure!((lease.job().id, lease.attempt()) == (all[0].id, 3));
    // It has no attempt left: the next one's turn.
    ensure!(lease.retry(&failure(), Duration::ZERO).await? == Retried::Exhausted);
    drop(lease);
    let lease = take(&mut runner).await?;
    ensure!(lease.job().id == all[1].id);
    lease.release().await?;
    drop(lease);
    serve(&mut runner, all[1].id).await?;
    serve(&mut runner, all[2].id).await
}

async fn an_order_waits_for_a_delay(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 4).await?;
    let mut all = in_order(4);
    all[0].starts_at = Some(now() + 250);
    all[2].starts_at = Some(now() + 500);
    bed.queue(&all).await?;
    bed.nothing_comes(&mut runner).await?;
    for job in &all {
        let lease = take(&mut runner).await?;
        ensure!(lease.job().id == job.id && Some(now()) >= job.starts_at);
        lease.finish(&done()).await?;
    }
    Ok(())
}

async fn an_order_outlives_a_runner(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut all = in_order(3);
    for job in &mut all {
        job.max_attempts = 2;
    }
    bed.queue(&all).await?;
    for attempt in 1..=2 {
        let name = format!("dead-{attempt}");
        let mut runner = bed.hire(&name, 4).await?;
        let lease = take(&mut runner).await?;
        ensure!((lease.job().id, lease.attempt()) == (all[0].id, attempt));
        bed.nothing_comes(&mut runner).await?;
        drop(runner);
        bed.bury(&name).await?;
    }
    ensure!(bed.state(all[0].id).await? == JobState::Quarantined);
    let mut runner = bed.hire("a", 4).await?;
    serve(&mut runner, all[1].id).await?;
    serve(&mut runner, all[2].id).await
}
