//! Taking jobs in.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::ensure;
use rhizome_model::{Job, JobState, Outcome};
use rhizome_queue::{QueueError, Submission};
use serde_json::json;

use crate::Bed;
use crate::bed::{QUEUE, done, failure, job, jobs, new_id, now, serve, take};

super::cases! {
    a_job_is_accepted_once: "a duplicate submit changes nothing and returns the first one's outcome",
    each_of_many_is_done_once: "every accepted job is done, once, however many come together",
    a_unique_key_is_taken_until_the_end: "while a job with a unique key has not ended, no other is taken",
    what_is_no_job_is_refused: "a job that cannot be kept is refused, and changes nothing",
    accepted_outlives_the_server: "accepted is on disk" [Outages],
    nothing_is_left_of_what_ended: "what is kept of ended jobs goes by itself with time" [Remains],
}

async fn a_job_is_accepted_once(bed: Bed) -> anyhow::Result<()> {
    let job = job();
    bed.queue(std::slice::from_ref(&job)).await?;
    let twice = [job.clone(), job.clone()];
    ensure!(bed.submit(&twice).await? == [Submission::Known(JobState::Queued); 2]);
    let mut runner = bed.hire("a", 2).await?;
    let lease = take(&mut runner).await?;
    ensure!(bed.submit(&twice).await? == [Submission::Known(JobState::Running); 2]);
    let first = Outcome::Succeeded(json!({ "made": 1 }));
    lease.finish(&first).await?;
    let other = Job { work: rhizome_model::Work::Script, ..job.clone() };
    ensure!(bed.submit(&[other]).await? == [Submission::Known(JobState::Succeeded)]);
    ensure!(bed.outcome(job.id).await? == first);
    ensure!(bed.record(job.id).await?.job == job);
    bed.nothing_comes(&mut runner).await?;
    ensure!(bed.ended(QUEUE, JobState::Succeeded).await? == 1);
    Ok(())
}

async fn each_of_many_is_done_once(bed: Bed) -> anyhow::Result<()> {
    const MANY: usize = 600;
    let many = jobs(MANY, job);
    let mut runner = bed.hire("a", 8).await?;
    let (half, rest) = many.split_at(MANY / 2);
    let singly = futures_util::future::try_join_all(
        rest.iter().map(|job| bed.queue(std::slice::from_ref(job))),
    );
    let (together, singly) = tokio::join!(bed.queue(half), singly);
    together?;
    singly?;
    let mut seen = HashSet::new();
    for _ in 0..MANY {
        let lease = take(&mut runner).await?;
        ensure!(seen.insert(lease.job().id), "job {} came twice", lease.job().id);
        lease.finish(&done()).await?;
    }
    bed.nothing_comes(&mut runner).await?;
    ensure!(many.iter().all(|job| seen.contains(&job.id)));
    ensure!(bed.ended(QUEUE, JobState::Succeeded).await? == MANY as u64);
    Ok(())
}

async fn a_unique_key_is_taken_until_the_end(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let with_key = || Job { unique: Some("nightly".into()), max_attempts: 1, ..job() };
    let mut runner = bed.hire("a", 1).await?;
    let ends = [
        JobState::Succeeded,
        JobState::Failed,
        JobState::Cancelled,
        JobState::Expired,
        JobState::Quarantined,
    ];
    for end in ends {
        let deadline = (end == JobState::Expired).then(|| now() + 300);
        let starts_at = deadline.map(|at| at + 60_000);
        let first = Job { expires_at: deadline, starts_at, ..with_key() };
        bed.queue(std::slice::from_ref(&first)).await?;
        ensure!(bed.submit(&[with_key()]).await? == [Submission::Duplicate(first.id)]);
        let other =
            Job { unique: Some("another".into()), starts_at: Some(now() + 60_000), ..job() };
        bed.queue(std::slice::from_ref(&other)).await?;
        bed.cancel(other.id).await?;
        if end == JobState::Expired {
            bed.becomes(first.id, end).await?;
        } else {
            let lease = take(&mut runner).await?;
            ensure!(bed.submit(&[with_key()]).await? == [Submission::Duplicate(first.id)]);
            match end {
                JobState::Succeeded => lease.finish(&done()).await?,
                JobState::Failed => lease.finish(&Outcome::Failed(failure())).await?,
                JobState::Cancelled => {
                    bed.cancel(first.id).await?;
                    lease.release().await?;
                }
                _ => drop(lease),
            }
            bed.becomes(first.id, end).await?;
        }
    }
    let last = with_key();
    bed.queue(std::slice::from_ref(&last)).await?;
    serve(&mut runner, last.id).await
}

async fn what_is_no_job_is_refused(bed: Bed) -> anyhow::Result<()> {
    let nowhere = Job { queue: "a queue".into(), ..job() };
    let refused = bed.submit(&[job(), nowhere]).await;
    ensure!(matches!(refused, Err(QueueError::Refused(_))), "{refused:?}");
    let greedy = Job { after: (0..1000).map(|_| new_id()).collect(), ..job() };
    let refused = bed.submit(&[greedy]).await;
    ensure!(matches!(refused, Err(QueueError::Refused(_))), "{refused:?}");
    bed.nothing_comes(&mut bed.hire("a", 1).await?).await
}

async fn accepted_outlives_the_server(bed: Bed) -> anyhow::Result<()> {
    let usual = jobs(20, job);
    let waiting = Job { after: vec![usual[0].id], ..job() };
    let delayed = Job { starts_at: Some(now() + 1500), ..job() };
    bed.queue(&usual).await?;
    bed.queue(&[waiting.clone(), delayed.clone()]).await?;
    bed.kill_server().await?;
    bed.start_server().await?;
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 1).await?;
    let mut ids = HashSet::new();
    for _ in 0..22 {
        let lease = take(&mut runner).await?;
        ensure!(ids.insert(lease.job().id) && lease.attempt() == 1);
        lease.finish(&done()).await?;
    }
    let all = usual.iter().chain([&waiting, &delayed]);
    ensure!(all.map(|job| job.id).collect::<HashSet<_>>() == ids);
    Ok(())
}

async fn nothing_is_left_of_what_ended(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let parent = job();
    let mut all = vec![parent.clone()];
    for n in 0..60 {
        let order = (n % 3 == 0).then(|| format!("order-{}", n % 2));
        let unique = (n % 4 == 0).then(|| format!("key-{n}"));
        let starts_at = (n % 5 == 0).then(|| now() + 200);
        // In time for none, or for all.
        let expires_at = (n % 7 < 2).then(|| now() + if n % 7 == 0 { 600 } else { 3_600_000 });
        let after = if n % 6 == 1 { vec![parent.id, all[n / 2].id] } else { Vec::new() };
        let under = (n % 8 == 2).then_some(parent.id);
        let account = crate::bed::job_of(1 + n as u64 % 3);
        let job = Job { order, unique, starts_at, expires_at, after, parent: under, ..account };
        all.push(Job { max_attempts: 2, ..job });
    }
    bed.queue(&all).await?;
    let mut runners = [bed.hire("a", 3).await?, bed.hire("b", 3).await?];
    let mut served = 0;
    while !is_all_over(&bed, &all).await? {
        for runner in &mut runners {
            let next = tokio::time::timeout(Duration::from_millis(20), runner.next());
            let Ok(Some(lease)) = next.await else { continue };
            served += 1;
            match served % 6 {
                0 => drop(lease),
                1 => lease.release().await?,
                2 => _ = lease.retry(&failure(), Duration::from_millis(30)).await?,
                3 => {
                    lease
                        .print(&rhizome_model::api::OutputChunk::Stdout { data: "eA==".into() })
                        .await?;
                    bed.cancel(lease.job().id).await?;
                    lease.finish(&Outcome::Cancelled).await?;
                }
                4 => {
                    lease.progress(&json!(served)).await?;
                    lease.finish(&done()).await?;
                }
                _ => lease.finish(&done()).await?,
            }
        }
    }
    let faults = bed.faults().await?;
    ensure!(faults.is_empty(), "{faults:#?}");
    for runner in runners {
        runner.close().await;
    }
    let patience = now() + 5000;
    let mut remains = bed.remains().await?;
    while !remains.is_empty() && now() < patience {
        tokio::time::sleep(Duration::from_millis(20)).await;
        remains = bed.remains().await?;
    }
    ensure!(remains.is_empty(), "{remains:#?}");
    Ok(())
}

async fn is_all_over(bed: &Bed, all: &[Job]) -> anyhow::Result<bool> {
    for job in all {
        if !bed.state(job.id).await?.is_ended() {
            return Ok(false);
        }
    }
    Ok(true)
}
