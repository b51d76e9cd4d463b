//! Attempts: whose they are, which of them count, and what a stale one can do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use rhizome_model::api::{AttemptEnd, OutputChunk};
use rhizome_model::{Code, Event, Job, JobId, JobState, Outcome, Phase, Task, Version, What, Work};
use rhizome_queue::{CancelReason, QueueError};
use serde_json::json;

use crate::bed::{
    QUEUE, code_of, done, failure, is_fenced, job, jobs, new_id, now, serve, soon, take,
};
use crate::{Bed, Lease};

super::cases! {
    a_released_attempt_does_not_count: "an attempt that is given back was not made",
    a_dead_runners_jobs_are_done_by_others: "a job whose runner died is done by another at once, and the attempt counts",
    a_silent_runner_is_found: "a runner that nobody saw die is found by its silence",
    a_lease_that_is_dropped_goes_back: "an attempt that is abandoned goes back at once, and counts",
    a_job_that_kills_its_runners_is_set_aside: "a job whose runners die is quarantined after its last attempt, and can be taken out once",
    a_stale_attempt_writes_nothing: "at most one attempt is live: one that is stale can neither finish nor touch anything",
    a_stale_attempt_touches_no_task: "an attempt that is stale writes no task and says no event" [Tasks],
    ending_twice_is_ending_once: "an end that is said twice is one end",
    the_history_tells_every_attempt: "every attempt is remembered: who, when, and how it ended",
    a_bad_day: "every job ends exactly once, whatever its runners do",
}

async fn a_released_attempt_does_not_count(bed: Bed) -> anyhow::Result<()> {
    let mut runner = bed.hire("a", 1).await?;
    let job = Job { max_attempts: 1, ..job() };
    bed.queue(std::slice::from_ref(&job)).await?;
    for _ in 0..4 {
        let lease = take(&mut runner).await?;
        ensure!((lease.job().id, lease.attempt()) == (job.id, 1));
        ensure!(bed.record(job.id).await?.attempts == 1);
        lease.release().await?;
    }
    serve(&mut runner, job.id).await?;
    ensure!(bed.record(job.id).await?.attempts == 1);
    Ok(())
}

async fn a_dead_runners_jobs_are_done_by_others(bed: Bed) -> anyhow::Result<()> {
    let mut dead = bed.hire("dead", 3).await?;
    let all = jobs(3, job);
    bed.queue(&all).await?;
    let mut held = Vec::new();
    for _ in &all {
        held.push(take(&mut dead).await?);
    }
    let mut alive = bed.hire("alive", 1).await?;
    drop(dead);
    let begun = Instant::now();
    bed.bury("dead").await?;
    for _ in &all {
        let lease = take(&mut alive).await?;
        ensure!(begun.elapsed() < bed.silence(), "they came only after {:?}", begun.elapsed());
        ensure!(lease.attempt() == 2);
        lease.finish(&done()).await?;
        let record = bed.record(lease.job().id).await?;
        ensure!(record.attempts == 2 && record.history.len() == 2, "{record:?}");
        ensure!(record.history[0].end == Some(AttemptEnd::Died));
    }
    bed.nothing_comes(&mut alive).await
}

async fn a_silent_runner_is_found(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut silent = bed.hire("silent", 1).await?;
    let job = job();
    bed.queue(std::slice::from_ref(&job)).await?;
    let lease = take(&mut silent).await?;
    let mut alive = bed.hire("alive", 1).await?;
    drop(silent);
    let second = take(&mut alive).await?;
    ensure!((second.job().id, second.attempt()) == (job.id, 2));
    // Longer than the silence: who lives and works is not given up.
    tokio::time::sleep(bed.silence() + Duration::from_millis(500)).await;
    is_fenced("the end", lease.finish(&done()).await)?;
    second.finish(&done()).await?;
    ensure!(bed.record(job.id).await?.attempts == 2);
    Ok(())
}

async fn a_lease_that_is_dropped_goes_back(bed: Bed) -> anyhow::Result<()> {
    let mut runner = bed.hire("a", 1).await?;
    let job = Job { max_attempts: 2, ..job() };
    bed.queue(std::slice::from_ref(&job)).await?;
    drop(take(&mut runner).await?);
    let lease = take(&mut runner).await?;
    ensure!((lease.job().id, lease.attempt()) == (job.id, 2));
    drop(lease);
    ensure!(code_of(&bed.outcome(job.id).await?)? == Code::Quarantined);
    Ok(())
}

async fn a_job_that_kills_its_runners_is_set_aside(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let job = Job { max_attempts: 3, unique: Some("it".into()), ..job() };
    bed.queue(std::slice::from_ref(&job)).await?;
    let unended = bed.again(job.id).await;
    ensure!(matches!(unended, Err(QueueError::NotEnded(_))), "{unended:?}");
    for n in 1..=3 {
        let name = format!("victim-{n}");
        let mut victim = bed.hire(&name, 1).await?;
        let lease = take(&mut victim).await?;
        ensure!(lease.attempt() == n);
        drop(victim);
        bed.bury(&name).await?;
    }
    ensure!(code_of(&bed.outcome(job.id).await?)? == Code::Quarantined);
    let record = bed.record(job.id).await?;
    ensure!((record.state, record.attempts) == (JobState::Quarantined, 3));
    let dead = async || anyhow::Ok(bed.stats().await?.iter().map(|stats| stats.dead).sum::<u64>());
    ensure!(dead().await? == 1);
    let again = bed.again(job.id).await?;
    ensure!(again != job.id && again == bed.again(job.id).await?, "twice is the same");
    ensure!(dead().await? == 0);
    let record = bed.record(again).await?;
    ensure!(record.job.again == Some(job.id) && record.attempts == 0);
    let mut runner = bed.hire("a", 1).await?;
    serve(&mut runner, again).await?;
    ensure!(bed.again(job.id).await? == again, "it was done again");
    bed.nothing_comes(&mut runner).await?;
    ensure!(bed.state(job.id).await? == JobState::Quarantined);
    let unknown = bed.again(new_id()).await;
    ensure!(matches!(unknown, Err(QueueError::NoSuchJob(_))), "{unknown:?}");
    Ok(())
}

/// All that a lease can do.
async fn is_stale(lease: &dyn Lease) -> anyhow::Result<()> {
    is_fenced("the end", lease.finish(&Outcome::Succeeded(json!("stale"))).await)?;
    is_fenced("the end", lease.finish(&Outcome::Failed(failure())).await)?;
    is_fenced("a retry", lease.retry(&failure(), Duration::ZERO).await)?;
    is_fenced("output", lease.print(&OutputChunk::Stdout { data: "c3RhbGU=".into() }).await)?;
    is_fenced("progress", lease.progress(&json!("stale")).await)?;
    // Nothing is there to be given back.
    lease.release().await?;
    Ok(())
}

async fn a_stale_attempt_writes_nothing(bed: Bed) -> anyhow::Result<()> {
    let job = job();
    bed.queue(std::slice::from_ref(&job)).await?;
    let mut zombie = bed.hire("zombie", 1).await?;
    let stale = take(&mut zombie).await?;
    // It lives, and is taken for dead.
    zombie.drain();
    bed.bury("zombie").await?;
    ensure!(soon("the news of the loss", stale.stopped()).await? == CancelReason::Lost);
    is_stale(&*stale).await?;
    ensure!(bed.state(job.id).await? == JobState::Queued);

    let mut alive = bed.hire("alive", 1).await?;
    let lease = take(&mut alive).await?;
    is_stale(&*stale).await?;
    let record = bed.record(job.id).await?;
    ensure!((record.state, record.attempts) == (JobState::Running, 2));
    ensure!((record.runner.as_deref(), record.progress) == (Some("alive"), None));
    lease.finish(&done()).await?;
    is_stale(&*stale).await?;

    let record = bed.record(job.id).await?;
    ensure!((record.outcome, record.failure) == (Some(done()), None));
    let said: Vec<_> = futures_util::StreamExt::collect(bed.output(job.id)).await;
    ensure!(said.len() == 1, "{said:?}");
    bed.nothing_comes(&mut alive).await?;
    ensure!(bed.ended(QUEUE, JobState::Succeeded).await? == 1);
    Ok(())
}

async fn a_stale_attempt_touches_no_task(bed: Bed) -> anyhow::Result<()> {
    let mut task = Task::new("1/demo".parse()?, Version(1), new_id());
    let work = Job {
        id: task.job,
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        work: Work::Script,
        ..job()
    };
    bed.accept(&task, &work).await?;
    let mut dead = bed.hire("dead", 1).await?;
    let stale = take(&mut dead).await?;
    let said = |message: &str| Event {
        at: now(),
        deployment: task.deployment.clone(),
        version: task.version,
        node: None,
        what: What::Log { message: message.into() },
    };
    let (first, never, last) = (said("first"), said("never"), said("last"));
    task.phase = Phase::Running;
    stale.update(&task, std::slice::from_ref(&first)).await?;
    dead.drain();
    bed.bury("dead").await?;
    let wrong = Task { phase: Phase::Failed, ..task.clone() };
    is_fenced("a task", stale.update(&wrong, std::slice::from_ref(&never)).await)?;
    let mut alive = bed.hire("alive", 1).await?;
    let lease = take(&mut alive).await?;
    is_fenced("a task", stale.update(&wrong, &[never]).await)?;
    ensure!(bed.task(&task).await?.as_ref() == Some(&task));
    lease.update(&task, std::slice::from_ref(&last)).await?;
    lease.finish(&done()).await?;
    let mut events = bed.follow(None);
    for expected in [first, last] {
        let next = soon("an event", futures_util::StreamExt::next(&mut events)).await?;
        ensure!(next.transpose()?.is_some_and(|(_, event)| event == expected));
    }
    Ok(())
}

async fn ending_twice_is_ending_once(bed: Bed) -> anyhow::Result<()> {
    let mut runner = bed.hire("a", 1).await?;
    let job = job();
    bed.queue(std::slice::from_ref(&job)).await?;
    let lease = take(&mut runner).await?;
    lease.finish(&Outcome::Succeeded(json!(1))).await?;
    lease.finish(&Outcome::Succeeded(json!(2))).await?;
    ensure!(bed.outcome(job.id).await? == Outcome::Succeeded(json!(1)));
    ensure!(bed.ended(QUEUE, JobState::Succeeded).await? == 1);
    Ok(())
}

async fn the_history_tells_every_attempt(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let job = Job { max_attempts: 5, ..job() };
    bed.queue(std::slice::from_ref(&job)).await?;
    let begun = now();
    for name in ["one", "two", "three"] {
        let mut runner = bed.hire(name, 1).await?;
        let lease = take(&mut runner).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        match name {
            "one" => _ = lease.retry(&failure(), Duration::from_millis(20)).await?,
            "two" => {
                drop(runner);
                bed.bury(name).await?;
                continue;
            }
            _ => lease.finish(&done()).await?,
        }
        runner.close().await;
    }
    let record = bed.record(job.id).await?;
    let history = &record.history;
    let told: Vec<_> = history.iter().map(|a| (a.number, a.runner.as_str(), a.end)).collect();
    let expected = [
        (1, "one", Some(AttemptEnd::Retried)),
        (2, "two", Some(AttemptEnd::Died)),
        (3, "three", Some(AttemptEnd::Succeeded)),
    ];
    ensure!(told == expected, "{told:?}");
    ensure!(history[0].failure == Some(failure()));
    let times = history.iter().flat_map(|a| [Some(a.started_at), a.ended_at]);
    let times: Option<Vec<i64>> = times.collect();
    ensure!(
        times.as_ref().is_some_and(|times| times.is_sorted() && times[0] + 2 >= begun),
        "{times:?}"
    );
    ensure!(history.iter().all(|a| a.ended_at >= Some(a.started_at + 15)), "{history:?}");
    ensure!(record.ended_at == history[2].ended_at && record.submitted_at <= begun + 2);
    Ok(())
}

type Ends = Arc<Mutex<HashMap<JobId, u32>>>;

fn dice(sides: u128) -> u128 {
    (uuid::Uuid::new_v4().as_u128() >> 64) % sides
}

/// Ends well, mostly; else fails, gives back, or stops half-way.
async fn work(lease: Box<dyn Lease>, ends: Ends) -> anyhow::Result<()> {
    match dice(12) {
        0 => drop(lease),
        1 => lease.release().await?,
        2 => match lease.retry(&failure(), Duration::from_millis(10)).await {
            Ok(_) | Err(QueueError::Fenced) => {}
            Err(error) => return Err(error.into()),
        },
        roll => {
            tokio::time::sleep(Duration::from_millis(if roll == 3 { 20 } else { 0 })).await;
            match lease.finish(&done()).await {
                Ok(()) => {
                    let mut ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
                    *ends.entry(lease.job().id).or_default() += 1;
                }
                Err(QueueError::Fenced) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

async fn a_bad_day(bed: Bed) -> anyhow::Result<()> {
    const JOBS: usize = 300;
    let _upkeep = bed.maintain();
    let all = jobs(JOBS, || Job { max_attempts: 60, ..job() });
    let ends = Ends::default();
    let mut lives = tokio::task::JoinSet::new();
    for n in 0..3 {
        let (bed, ends) = (bed.clone(), ends.clone());
        lives.spawn(async move {
            for life in 0.. {
                let name = format!("r{n}-{life}");
                let mut runner = bed.hire(&name, 4).await?;
                let dies_at = Instant::now() + Duration::from_millis(50 + dice(100) as u64);
                let mut works = tokio::task::JoinSet::new();
                while n == 0 || Instant::now() < dies_at {
                    let next = tokio::time::timeout(Duration::from_millis(20), runner.next());
                    let Ok(Some(lease)) = next.await else { continue };
                    works.spawn(work(lease, ends.clone()));
                    while let Some(worked) = works.try_join_next() {
                        worked??;
                    }
                }
                drop(runner);
                bed.bury(&name).await?;
                works.shutdown().await;
            }
            anyhow::Ok(())
        });
    }
    bed.queue(&all).await?;
    for job in &all {
        let outcome = tokio::select! {
            outcome = bed.outcome(job.id) => outcome?,
            Some(ended) = lives.join_next() => {
                ended??;
                continue;
            }
        };
        ensure!(outcome == done(), "{outcome:?}");
    }
    lives.shutdown().await;
    let ends = ends.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(ends.values().all(|n| *n == 1), "an end was accepted twice");
    ensure!(bed.ended(QUEUE, JobState::Succeeded).await? == JOBS as u64);
    let stats = bed.stats().await?;
    ensure!(stats.iter().all(|s| (s.ready, s.running, s.delayed) == (0, 0, 0)), "{stats:?}");
    Ok(())
}
