//! What waits for a time, what is too late, and what comes again and again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use rhizome_model::{Code, Job, JobState, Outcome};
use rhizome_queue::{Periodic, Retried};

use crate::Bed;
use crate::bed::{QUEUE, code_of, done, failure, job, now, take};

super::cases! {
    a_delayed_job_waits_for_its_time: "a job does not start before its time, and then it does",
    a_failed_attempt_is_repeated_after_its_pause: "a failed attempt is repeated after its pause, as often as is allowed, then the job is a dead letter",
    what_has_not_begun_in_time_expires: "what waits, for whatever, expires with its deadline; what runs does not",
    nothing_starts_late: "nothing that is past its deadline starts",
    a_periodic_job_comes_once_per_slot: "a periodic job comes once per slot, whoever maintains",
}

async fn a_delayed_job_waits_for_its_time(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 1).await?;
    let later = Job { starts_at: Some(now() + 400), ..job() };
    let sooner = Job { starts_at: Some(now() + 200), ..job() };
    let past = Job { starts_at: Some(now() - 1000), ..job() };
    bed.queue(&[later.clone(), sooner.clone()]).await?;
    ensure!(bed.state(later.id).await? == JobState::Delayed);
    bed.queue(std::slice::from_ref(&past)).await?;
    for (job, waits) in [(past, false), (sooner, true), (later, true)] {
        let lease = take(&mut runner).await?;
        ensure!(lease.job().id == job.id, "not in the order of their times");
        lease.finish(&done()).await?;
        let record = bed.record(job.id).await?;
        let (started, starts_at) = (record.started_at, job.starts_at);
        ensure!(started >= starts_at, "started at {started:?}, not before {starts_at:?}");
        ensure!(!waits || started < starts_at.map(|at| at + 2000), "it came late: {started:?}");
    }
    Ok(())
}

async fn a_failed_attempt_is_repeated_after_its_pause(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    const PAUSE: Duration = Duration::from_millis(120);
    let mut runner = bed.hire("a", 1).await?;
    let job = Job { max_attempts: 3, ..job() };
    bed.queue(std::slice::from_ref(&job)).await?;
    for attempt in 1..=3 {
        let lease = take(&mut runner).await?;
        ensure!((lease.job().id, lease.attempt()) == (job.id, attempt));
        let failed = now();
        let retried = lease.retry(&failure(), PAUSE).await?;
        let last = attempt == 3;
        ensure!(retried == if last { Retried::Exhausted } else { Retried::Later });
        let record = bed.record(job.id).await?;
        ensure!((record.attempts, record.failure) == (attempt, Some(failure())));
        if !last {
            ensure!(record.state == JobState::Delayed || now() >= failed + 120);
        }
    }
    let record = bed.record(job.id).await?;
    ensure!(record.state == JobState::Failed && record.outcome == Some(Outcome::Failed(failure())));
    let history = &record.history;
    ensure!(history.len() == 3);
    for (one, next) in history.iter().zip(&history[1..]) {
        let pause = next.started_at - one.ended_at.unwrap_or(i64::MAX);
        ensure!((119..3000).contains(&pause), "a pause of {pause} ms");
    }
    let stats = bed.stats().await?;
    ensure!(stats.iter().any(|s| s.queue == QUEUE && s.dead == 1), "{stats:?}");
    bed.nothing_comes(&mut runner).await
}

async fn what_has_not_begun_in_time_expires(bed: Bed) -> anyhow::Result<()> {
    let _upkeep = bed.maintain();
    let mut runner = bed.hire("a", 1).await?;
    let expires_at = Some(now() + 500);
    let soon = || Job { expires_at, ..job() };
    let (running, retrying) = (soon(), Job { max_attempts: 9, ..soon() });
    bed.queue(std::slice::from_ref(&retrying)).await?;
    take(&mut runner).await?.retry(&failure(), Duration::from_secs(60)).await?;
    bed.queue(std::slice::from_ref(&running)).await?;
    let lease = take(&mut runner).await?;
    ensure!(lease.job().id == running.id);
    let queued = soon();
    let delayed = Job { starts_at: Some(now() + 60_000), ..soon() };
    let waiting = Job { after: vec![running.id], ..soon() };
    let in_line = Job { order: Some("line".into()), ..soon() };
    let behind = Job { order: Some("line".into()), ..soon() };
    let all = [queued, delayed, waiting, in_line, behind];
    bed.queue(&all).await?;
    for job in all.iter().chain([&retrying]) {
        ensure!(code_of(&bed.outcome(job.id).await?)? == Code::Expired);
        ensure!(Some(now()) >= expires_at, "it expired too early");
        let record = bed.record(job.id).await?;
        let attempts = u32::from(job.id == retrying.id);
        ensure!((record.state, record.attempts) == (JobState::Expired, attempts));
    }
    ensure!(bed.state(running.id).await? == JobState::Running);
    lease.finish(&done()).await?;
    ensure!(bed.state(running.id).await? == JobState::Succeeded);
    bed.nothing_comes(&mut runner).await
}

/// Nobody maintains.
async fn nothing_starts_late(bed: Bed) -> anyhow::Result<()> {
    let late = Job { expires_at: Some(now() - 1), ..job() };
    let in_time = Job { expires_at: Some(now() + 60_000), ..job() };
    let back = Job { expires_at: Some(now() + 150), ..job() };
    bed.queue(&[back.clone(), late.clone(), in_time.clone()]).await?;
    let mut runner = bed.hire("a", 1).await?;
    let lease = take(&mut runner).await?;
    ensure!(lease.job().id == back.id);
    while Some(now()) <= back.expires_at {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Given back too late, it does not start again.
    lease.release().await?;
    drop(lease);
    let lease = take(&mut runner).await?;
    ensure!(lease.job().id == in_time.id);
    lease.finish(&done()).await?;
    for job in [late, back] {
        ensure!(code_of(&bed.outcome(job.id).await?)? == Code::Expired);
        let record = bed.record(job.id).await?;
        ensure!((record.state, record.attempts) == (JobState::Expired, 0));
    }
    Ok(())
}

async fn a_periodic_job_comes_once_per_slot(bed: Bed) -> anyhow::Result<()> {
    const EVERY: i64 = 1000;
    let _first = bed.maintain();
    let second = bed.maintain();
    let mut runner = bed.hire("a", 2).await?;
    let periodic = |name: &str| Periodic {
        name: name.into(),
        every: Duration::from_millis(EVERY as u64),
        job: job(),
    };
    bed.set_periodic(&[periodic("one"), periodic("two")]).await?;
    let begun = now() / EVERY;
    let mut third = None;
    let mut second = Some(second);
    let mut ids = BTreeMap::<i64, Vec<_>>::new();
    while now() / EVERY < begun + 4 {
        if now() / EVERY == begun + 2 && second.take().is_some() {
            // One stops, another comes, and somebody says the same once more.
            third = Some(bed.maintain());
            bed.set_periodic(&[periodic("one"), periodic("two")]).await?;
        }
        let next = tokio::time::timeout(Duration::from_millis(50), runner.next());
        if let Ok(Some(lease)) = next.await {
            let at = bed.record(lease.job().id).await?.submitted_at / EVERY;
            ids.entry(at).or_default().push(lease.job().id);
            lease.finish(&done()).await?;
        }
    }
    drop(third);
    for slot in begun + 1..begun + 4 {
        let came = ids.get(&slot).map_or(0, Vec::len);
        ensure!(came == 2, "{came} jobs in slot {slot}: {ids:?}");
    }
    Ok(())
}
