//! Jobs that wait for others.

use std::time::Duration;

use anyhow::ensure;
use rhizome_model::{Code, Job, JobState, Outcome};

use crate::Bed;
use crate::bed::{QUEUE, code_of, done, failure, job, jobs, new_id, now, serve, take};

super::cases! {
    a_job_starts_after_all_that_it_waits_for: "a job starts when all that it is after have succeeded, not before",
    many_may_wait_for_one: "however many jobs are after one, all of them go on",
    a_job_fails_with_one_that_it_waits_for: "a job whose predecessor ended otherwise fails, and so on down the chain",
    a_job_after_an_unknown_one_fails: "a job that is after one that is not known fails at once",
    a_wait_and_a_delay_both_count: "a job that waits for others and for a time waits for both",
}

async fn a_job_starts_after_all_that_it_waits_for(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 4).await?;
    let before = jobs(3, job);
    bed.queue(&before).await?;
    let ended = job();
    // Itself after all, and another after it, in a queue of its own.
    let last = Job { after: before.iter().map(|job| job.id).collect(), ..job() };
    let beyond = Job { after: vec![last.id], queue: "machine".into(), ..job() };
    bed.queue(&[last.clone(), beyond.clone()]).await?;
    let mut leases = Vec::new();
    for _ in &before {
        leases.push(take(&mut runner).await?);
    }
    for lease in leases {
        ensure!(bed.state(last.id).await? == JobState::Waiting);
        let waits_for = bed.record(last.id).await?.waits_for;
        ensure!(waits_for.contains(&lease.job().id), "{waits_for:?}");
        bed.nothing_comes(&mut runner).await?;
        lease.finish(&done()).await?;
    }
    serve(&mut runner, last.id).await?;
    bed.queue(std::slice::from_ref(&ended)).await?;
    serve(&mut runner, ended.id).await?;
    let mut other = bed.hire_for("b", 1, &["machine"]).await?;
    serve(&mut other, beyond.id).await?;
    // What has ended already is waited for no more.
    let at_once = Job { after: vec![ended.id, last.id], ..job() };
    bed.queue(std::slice::from_ref(&at_once)).await?;
    serve(&mut runner, at_once.id).await
}

async fn many_may_wait_for_one(bed: Bed) -> anyhow::Result<()> {
    const MANY: usize = 700;
    let _upkeep = bed.maintain();
    for succeeds in [true, false] {
        let first = Job { queue: "machine".into(), ..job() };
        bed.queue(std::slice::from_ref(&first)).await?;
        let many = jobs(MANY, || Job { after: vec![first.id], ..job() });
        bed.queue(&many).await?;
        let mut runner = bed.hire_for("first", 1, &["machine"]).await?;
        let lease = take(&mut runner).await?;
        let outcome = if succeeds { done() } else { Outcome::Failed(failure()) };
        lease.finish(&outcome).await?;
        runner.close().await;
        let mut runner = bed.hire("many", 8).await?;
        for _ in 0..if succeeds { MANY } else { 0 } {
            take(&mut runner).await?.finish(&done()).await?;
        }
        runner.close().await;
        for job in &many {
            let outcome = bed.outcome(job.id).await?;
            ensure!(matches!(outcome, Outcome::Succeeded(_)) == succeeds, "{outcome:?}");
        }
    }
    ensure!(bed.ended(QUEUE, JobState::Succeeded).await? == MANY as u64);
    ensure!(bed.ended(QUEUE, JobState::Failed).await? == MANY as u64);
    Ok(())
}

async fn a_job_fails_with_one_that_it_waits_for(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 1).await?;
    for end in [JobState::Failed, JobState::Cancelled, JobState::Expired, JobState::Quarantined] {
        let expires = end == JobState::Expired;
        let first = Job {
            max_attempts: 1,
            expires_at: expires.then(|| now() + 200),
            starts_at: expires.then(|| now() + 60_000),
            ..job()
        };
        let good = Job { starts_at: Some(now() + 60_000), ..job() };
        let second = Job { after: vec![good.id, first.id], ..job() };
        let third = Job { after: vec![second.id], ..job() };
        bed.queue(&[first.clone(), good.clone(), second.clone(), third.clone()]).await?;
        if !expires {
            let lease = take(&mut runner).await?;
            match end {
                JobState::Failed => lease.finish(&Outcome::Failed(failure())).await?,
                JobState::Cancelled => lease.finish(&Outcome::Cancelled).await?,
                _ => drop(lease),
            }
        }
        for job in [&second, &third] {
            ensure!(code_of(&bed.outcome(job.id).await?)? == Code::Conflict, "after {end:?}");
            let record = bed.record(job.id).await?;
            ensure!((record.state, record.attempts) == (JobState::Failed, 0));
        }
        ensure!(bed.state(first.id).await? == end);
        // Too late for one that comes now.
        let late = Job { after: vec![first.id], ..job() };
        bed.queue(std::slice::from_ref(&late)).await?;
        ensure!(bed.state(late.id).await? == JobState::Failed);
        bed.cancel(good.id).await?;
    }
    bed.nothing_comes(&mut runner).await
}

async fn a_job_after_an_unknown_one_fails(bed: Bed) -> anyhow::Result<()> {
    let known = job();
    bed.queue(std::slice::from_ref(&known)).await?;
    let lost = Job { after: vec![known.id, new_id()], ..job() };
    bed.queue(std::slice::from_ref(&lost)).await?;
    ensure!(code_of(&bed.outcome(lost.id).await?)? == Code::Conflict);
    let mut runner = bed.hire("a", 1).await?;
    serve(&mut runner, known.id).await?;
    bed.nothing_comes(&mut runner).await?;
    ensure!(bed.ended(QUEUE, JobState::Failed).await? == 1);
    Ok(())
}

async fn a_wait_and_a_delay_both_count(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 2).await?;
    let first = job();
    let second = Job { after: vec![first.id], starts_at: Some(now() + 400), ..job() };
    bed.queue(&[first.clone(), second.clone()]).await?;
    ensure!(bed.state(second.id).await? == JobState::Waiting);
    serve(&mut runner, first.id).await?;
    bed.becomes(second.id, JobState::Delayed).await?;
    let lease = take(&mut runner).await?;
    ensure!(lease.job().id == second.id && Some(now()) >= second.starts_at);
    lease.finish(&done()).await?;
    // The time is over first.
    let first = Job { starts_at: Some(now() + 300), ..job() };
    let second = Job { after: vec![first.id], starts_at: Some(now() + 50), ..job() };
    bed.queue(&[first.clone(), second.clone()]).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    ensure!(bed.state(second.id).await? == JobState::Waiting);
    serve(&mut runner, first.id).await?;
    serve(&mut runner, second.id).await
}
