//! What can be seen of jobs: progress, output, results, events, figures.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use rhizome_model::api::OutputChunk;
use rhizome_model::{AccountId, Code, Event, Failure, Job, JobState, Outcome, Version, What};
use rhizome_queue::{QueueError, QueueStats};
use serde_json::json;

use crate::Bed;
use crate::bed::{QUEUE, done, failure, job, job_of, jobs, new_id, now, soon, take};

super::cases! {
    progress_is_seen: "what a runner last said about its progress is seen, also after the end",
    output_is_streamed: "what a job prints is seen while it runs and afterwards, and how it ended comes last",
    output_is_bounded: "of what a job prints the last pieces are kept",
    results_are_kept: "the result of a job is there for whoever asks later, and wakes whoever waits",
    events_are_followed_and_resumed: "events come in their order, each once, and a follower resumes by an id",
    stats_count_what_is_there: "the figures are what is there, by queue and account",
}

async fn progress_is_seen(bed: Bed) -> anyhow::Result<()> {
    let mut runner = bed.hire("a", 1).await?;
    let job = job();
    bed.queue(std::slice::from_ref(&job)).await?;
    let lease = take(&mut runner).await?;
    ensure!(bed.record(job.id).await?.progress.is_none());
    for percent in [10, 60] {
        lease.progress(&json!({ "percent": percent })).await?;
        let progress = bed.record(job.id).await?.progress;
        ensure!(progress == Some(json!({ "percent": percent })), "{progress:?}");
    }
    lease.finish(&done()).await?;
    ensure!(bed.record(job.id).await?.progress == Some(json!({ "percent": 60 })));
    Ok(())
}

fn chunk(n: usize) -> OutputChunk {
    OutputChunk::Stdout { data: n.to_string() }
}

async fn output_is_streamed(bed: Bed) -> anyhow::Result<()> {
    let mut runner = bed.hire("a", 1).await?;
    let job = job();
    bed.queue(std::slice::from_ref(&job)).await?;
    let mut live = bed.output(job.id);
    let lease = take(&mut runner).await?;
    for n in 0..50 {
        lease.print(&chunk(n)).await?;
        let seen = soon("a piece", live.next()).await?.transpose()?;
        ensure!(seen == Some(chunk(n)), "{seen:?} while it runs");
    }
    // A second attempt goes on where the first one was.
    drop(lease);
    let lease = take(&mut runner).await?;
    lease.print(&chunk(50)).await?;
    lease.finish(&done()).await?;
    let mut expected: Vec<_> = (0..=50).map(chunk).collect();
    expected.push(OutputChunk::Exit { result: json!("done") });
    let rest: Vec<_> = soon("the rest", live.collect()).await?;
    let rest = rest.into_iter().collect::<Result<Vec<_>, _>>()?;
    ensure!(rest == expected[50..], "{rest:?}");
    let again: Vec<_> = soon("all of it", bed.output(job.id).collect()).await?;
    let again = again.into_iter().collect::<Result<Vec<_>, _>>()?;
    ensure!(again == expected);
    let unknown = soon("an answer", bed.output(new_id()).next()).await?;
    ensure!(matches!(unknown, Some(Err(QueueError::NoSuchJob(_)))), "{unknown:?}");
    Ok(())
}

async fn output_is_bounded(bed: Bed) -> anyhow::Result<()> {
    const PRINTED: usize = 10_600;
    const KEPT: std::ops::RangeInclusive<usize> = 1_000..=10_300;
    let mut runner = bed.hire("a", 1).await?;
    let job = job();
    bed.queue(std::slice::from_ref(&job)).await?;
    let lease = take(&mut runner).await?;
    for n in 0..PRINTED {
        lease.print(&chunk(n)).await?;
    }
    lease.finish(&done()).await?;
    let kept: Vec<_> = soon("all that is kept", bed.output(job.id).collect()).await?;
    let kept = kept.into_iter().collect::<Result<Vec<_>, _>>()?;
    let (last, pieces) = kept.split_last().context("nothing is kept")?;
    ensure!(matches!(last, OutputChunk::Exit { .. }));
    ensure!(KEPT.contains(&pieces.len()), "{} of {PRINTED} are kept", pieces.len());
    let first = PRINTED - pieces.len();
    ensure!(pieces.iter().enumerate().all(|(n, piece)| *piece == chunk(first + n)));
    Ok(())
}

async fn results_are_kept(bed: Bed) -> anyhow::Result<()> {
    let mut runner = bed.hire("a", 1).await?;
    let detailed = Failure::new(Code::PoolFull, "no room").with_detail("3 of 3");
    let outcomes = [
        Outcome::Succeeded(json!({ "address": "fd00::1", "list": [1, null, "ü"] })),
        Outcome::Failed(detailed),
        Outcome::Cancelled,
    ];
    let all = jobs(outcomes.len(), job);
    bed.queue(&all).await?;
    let waiting: Vec<_> = all
        .iter()
        .map(|job| {
            let (bed, id) = (bed.clone(), job.id);
            tokio::spawn(async move { bed.outcome(id).await })
        })
        .collect();
    for outcome in &outcomes {
        take(&mut runner).await?.finish(outcome).await?;
    }
    for ((waited, job), outcome) in waiting.into_iter().zip(&all).zip(&outcomes) {
        ensure!(waited.await?? == *outcome);
        ensure!(bed.outcome(job.id).await? == *outcome, "to one who comes later");
        let record = bed.record(job.id).await?;
        ensure!(record.outcome.as_ref() == Some(outcome) && record.job == *job);
        ensure!(record.ended_at >= record.started_at && record.started_at.is_some());
    }
    ensure!(bed.job(new_id()).await?.is_none());
    let unknown = bed.wait(new_id()).await;
    ensure!(matches!(unknown, Err(QueueError::NoSuchJob(_))), "{unknown:?}");
    Ok(())
}

async fn events_are_followed_and_resumed(bed: Bed) -> anyhow::Result<()> {
    let event = |n: usize| -> anyhow::Result<Event> {
        let what = What::Log { message: n.to_string() };
        Ok(Event {
            at: now(),
            deployment: "1/demo".parse()?,
            version: Version(1),
            node: None,
            what,
        })
    };
    let all = (0..30).map(event).collect::<anyhow::Result<Vec<_>>>()?;
    let mut live = bed.follow(None);
    let mut ids = Vec::new();
    for some in all.chunks(4) {
        bed.publish(some).await?;
        for expected in some {
            let next = soon("an event", live.next()).await?.transpose()?;
            let (id, seen) = next.context("it ended")?;
            ensure!(seen == *expected);
            ids.push(id);
        }
    }
    for from in [0, 7, 28] {
        let mut resumed = bed.follow(Some(ids[from].clone()));
        for at in from + 1..all.len() {
            let next = soon("an event", resumed.next()).await?.transpose()?;
            ensure!(next == Some((ids[at].clone(), all[at].clone())), "after event {from}");
        }
        let more = tokio::time::timeout(Duration::from_millis(30), resumed.next()).await;
        ensure!(more.is_err(), "{more:?}");
    }
    Ok(())
}

async fn stats_count_what_is_there(bed: Bed) -> anyhow::Result<()> {
    let upkeep = bed.maintain();
    let mut runner = bed.hire("a", 2).await?;
    let retrying = jobs(2, job);
    bed.queue(&retrying).await?;
    for _ in &retrying {
        take(&mut runner).await?.retry(&failure(), Duration::from_secs(60)).await?;
    }
    bed.queue(&[Job { max_attempts: 1, ..job() }]).await?;
    take(&mut runner).await?.retry(&failure(), Duration::ZERO).await?;
    bed.queue(&jobs(2, || job_of(2))).await?;
    for _ in 0..2 {
        take(&mut runner).await?.finish(&done()).await?;
    }
    bed.queue(&jobs(2, job)).await?;
    let running = [take(&mut runner).await?, take(&mut runner).await?];
    bed.queue(&jobs(5, || job_of(2))).await?;
    bed.queue(&[Job { starts_at: Some(now() + 60_000), ..job() }]).await?;
    bed.queue(&jobs(3, || Job { after: vec![running[0].job().id], ..job() })).await?;
    let cancelled = job_of(3);
    bed.queue(std::slice::from_ref(&cancelled)).await?;
    bed.cancel(cancelled.id).await?;
    drop(upkeep);

    let of_queue = |stats: Vec<QueueStats>| stats.into_iter().find(|stats| stats.queue == QUEUE);
    let stats = of_queue(bed.stats().await?).context("the queue is not there")?;
    let counted = (stats.slots, stats.ready, stats.running, stats.delayed, stats.retrying);
    ensure!(counted == (2, 5, 2, 3, 2), "{stats:?}");
    ensure!((stats.waiting, stats.dead) == (3, 1), "{stats:?}");
    let ended = |state| stats.ended.get(&state).copied().unwrap_or_default();
    use JobState::{Cancelled, Failed, Succeeded};
    ensure!((ended(Succeeded), ended(Failed), ended(Cancelled)) == (2, 1, 1), "{stats:?}");
    let of = |account| stats.accounts.iter().find(|a| a.account == AccountId(account));
    let (one, two) = (of(1).context("account 1")?, of(2).context("account 2")?);
    ensure!((one.ready, one.running, two.ready, two.running) == (0, 2, 5, 0), "{stats:?}");
    ensure!(two.ended.get(&Succeeded) == Some(&2) && one.ended.get(&Failed) == Some(&1));
    tokio::time::sleep(Duration::from_millis(30)).await;
    let stats = of_queue(bed.stats().await?).context("the queue is not there")?;
    ensure!((25..20_000).contains(&stats.oldest_ms), "the oldest waited {} ms", stats.oldest_ms);
    for lease in running {
        lease.finish(&done()).await?;
    }
    Ok(())
}
