//! Crash points of those who look after the queue.

use std::time::Duration;

use rhizome_chaos::history::{Answer, What};
use rhizome_chaos::plan::{Plan, new_id};
use rhizome_chaos::proxy::Proxy;
use rhizome_model::api::{AccountLimits, PoolMode};
use rhizome_model::{AccountId, Code, Failure, Job, JobState};
use rhizome_queue::{
    Durability, Lease, MaintainOptions, Periodic, Queue, QueueConfig, QueueError, Retried, Runner,
    RunnerOptions,
};
use tokio_util::sync::CancellationToken;

use crate::bed::{Bed, QUEUE, fail_everywhere, linger, options, until, upkeep};

/// Upkeep through the proxy, until the job is no longer in that state.
async fn maintain_until_not(
    bed: &mut Bed,
    job: &Job,
    state: JobState,
) -> anyhow::Result<Option<()>> {
    let (far, near, stop) = (bed.far.clone(), bed.near.clone(), CancellationToken::new());
    let proxy = bed.proxy.clone();
    // Who is silent now was silent long enough.
    // One sweep, at the beginning.
    let sweep = Duration::from_secs(10);
    let options = MaintainOptions { grace: Duration::ZERO, sweep, ..upkeep() };
    let maintained = far.maintain_with(options, stop.clone());
    let looked = async {
        let _stop = stop.clone().drop_guard();
        let moved = until("it has moved", async || {
            near.job(job.id).await.is_ok_and(|r| r.is_some_and(|r| r.state != state))
        });
        // In vain: then the checker says what is wrong.
        let _ = moved.await;
        linger(&proxy).await;
    };
    bed.step(async {
        tokio::join!(maintained, looked);
        Ok::<_, QueueError>(())
    })
    .await
}

#[tokio::test]
async fn promote_what_is_due() {
    fail_everywhere(async |bed| {
        let job = bed.planned(&Plan { failures: 1, ..Plan::default() })?;
        bed.given(&job).await?;
        let mut runner = bed.far_runner(1).await?;
        let lease = bed.take(&mut runner).await?;
        bed.ended(&lease);
        let failure = Failure::new(Code::ToolFailed, "as it was planned");
        let retried = lease.retry(&failure, Duration::ZERO, &[]).await?;
        anyhow::ensure!(retried == Retried::Later, "{retried:?}");
        bed.told(&lease, Answer::Retried);
        drop(lease);
        runner.close().await;
        maintain_until_not(bed, &job, JobState::Delayed).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn release_a_runner() {
    fail_everywhere(async |bed| {
        let jobs = [bed.job()?, bed.job()?];
        for job in &jobs {
            bed.given(job).await?;
        }
        let mut runner = bed.far_runner(2).await?;
        let leases = [bed.take(&mut runner).await?, bed.take(&mut runner).await?];
        // It is dead: its jobs and its heart stand still.
        leases.iter().for_each(|lease| bed.ended(lease));
        drop(runner);
        bed.history.note_death("far");
        let far = bed.far.clone();
        bed.step(far.release_runner("far")).await?;
        drop(leases);
        Ok(())
    })
    .await;
}

/// Nobody saw it die: its silence tells.
#[tokio::test]
async fn sweep_a_silent_runner() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        bed.given(&job).await?;
        let silence = Duration::from_millis(30);
        let silent = RunnerOptions { silence, ..options("far", 1) };
        let mut runner = bed.far_runner_with(silent).await?;
        let lease = bed.take(&mut runner).await?;
        bed.ended(&lease);
        drop(runner);
        bed.history.note_death("far");
        tokio::time::sleep(silence).await;
        maintain_until_not(bed, &job, JobState::Running).await?;
        drop(lease);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn pools_are_set_and_reset() {
    fail_everywhere(async |bed| {
        let far = bed.far.clone();
        let job = bed.job()?;
        bed.given(&job).await?;
        let step = async {
            far.set_mode(QUEUE, PoolMode::Paused).await?;
            far.set_scale(QUEUE, 3).await?;
            far.pools().await
        };
        if let Some(pools) = bed.step(step).await? {
            let set = pools.get(QUEUE);
            anyhow::ensure!(
                set.is_some_and(|set| set.mode == PoolMode::Paused && set.scale == Some(3)),
                "{set:?}"
            );
        }
        bed.near.set_mode(QUEUE, PoolMode::Running).await?;
        Ok(())
    })
    .await;
}

/// What waited for a job, or for its turn, goes on.
#[tokio::test]
async fn release_those_that_waited() {
    fail_everywhere(async |bed| {
        let order = Some("line".to_owned());
        let first = Job { order: order.clone(), ..bed.job()? };
        let after = Job { after: vec![first.id], ..bed.job()? };
        let second = Job { order, ..bed.job()? };
        for job in [&first, &after, &second] {
            bed.given(job).await?;
        }
        let mut runner = bed.far_runner(1).await?;
        let lease = bed.take(&mut runner).await?;
        bed.ended(&lease);
        bed.finish(&lease).await?;
        bed.told(&lease, Answer::Finished(JobState::Succeeded));
        drop(lease);
        runner.close().await;
        maintain_until_not(bed, &second, JobState::Waiting).await?;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn expire_what_did_not_begin() {
    fail_everywhere(async |bed| {
        let job = Job { expires_at: Some(1), starts_at: Some(i64::MAX / 2), ..bed.job()? };
        bed.given(&job).await?;
        maintain_until_not(bed, &job, JobState::Delayed).await?;
        Ok(())
    })
    .await;
}

/// Once per slot, whoever dies.
#[tokio::test]
async fn submit_what_is_periodic() {
    fail_everywhere(async |bed| {
        let job = Plan::default().job(new_id(&mut fastrand::Rng::new()), QUEUE, AccountId(1))?;
        let every = Duration::from_secs(1);
        let periodic = Periodic { name: "tick".into(), every, job };
        bed.near.set_periodic(std::slice::from_ref(&periodic)).await?;
        // Its id is not known before: a runner says what there is.
        let runner = bed.far_runner(1).await?;
        let proxy = bed.proxy.clone();
        let step = tick(bed.far.clone(), runner, &proxy);
        let taken = match bed.step(step).await? {
            Some(taken) => taken,
            None => {
                bed.near.release_runner("far").await?;
                bed.runner = "second".into();
                let second = bed.near.runner(options("second", 1)).await?;
                tick(bed.near.clone(), second, &proxy).await?
            }
        };
        bed.near.set_periodic(&[]).await?;
        let (mut runner, mut next) = taken;
        while let Some(lease) = next {
            bed.history.note(lease.job.id, What::Submitting);
            bed.history.note(lease.job.id, What::Accepted);
            bed.jobs.push(lease.job.id);
            bed.began(&lease);
            bed.ended(&lease);
            bed.finish(&lease).await?;
            bed.told(&lease, Answer::Finished(JobState::Succeeded));
            drop(lease);
            // The next slot may have begun meanwhile.
            let more = tokio::time::timeout(Duration::from_millis(50), runner.next()).await;
            next = more.ok().flatten();
        }
        runner.close().await;
        Ok(())
    })
    .await;
}

/// Upkeep until the runner has a job.
async fn tick(
    queue: Queue,
    mut runner: Runner,
    proxy: &Proxy,
) -> Result<(Runner, Option<Lease>), QueueError> {
    let stop = CancellationToken::new();
    // Two rounds: one at the beginning, one when a slot begins.
    let options = MaintainOptions { sweep: Duration::from_secs(10), ..upkeep() };
    let maintained = queue.maintain_with(options, stop.clone());
    let taken = async {
        let _stop = stop.clone().drop_guard();
        let lease = runner.next().await;
        linger(proxy).await;
        lease
    };
    let ((), lease) = tokio::join!(maintained, taken);
    Ok((runner, lease))
}

/// The runner could not say how its job ended, and died.
#[tokio::test]
async fn deliver_what_a_dead_runner_left() {
    fail_everywhere(async |bed| {
        let job = bed.job()?;
        bed.given(&job).await?;
        let socket = bed.folder.join("edge.sock");
        let edge = Proxy::start(&socket, &bed.folder.join("redis.sock"))?;
        let config = QueueConfig { socket, durability: Durability::None };
        let spool = bed.folder.join("spool");
        let spooling = RunnerOptions { spool: Some(spool.clone()), ..options("far", 1) };
        bed.will_run();
        let mut runner = Queue::connect(&config).await?.runner(spooling).await?;
        let lease = bed.take(&mut runner).await?;
        bed.ended(&lease);
        edge.die();
        bed.finish(&lease).await?;
        bed.told(&lease, Answer::Finished(JobState::Succeeded));
        drop((lease, runner));
        let far = bed.far.clone();
        if bed.step(far.deliver_spool(&spool, "far")).await?.is_none() {
            bed.near.deliver_spool(&spool, "far").await?;
        }
        anyhow::ensure!(!spool.join("far").exists(), "something is left in the spool");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn limits_are_set() {
    fail_everywhere(async |bed| {
        let (far, job) = (bed.far.clone(), bed.job()?);
        bed.given(&job).await?;
        let limits = AccountLimits { concurrency: Some(1), ..AccountLimits::default() };
        let step = async {
            far.set_limits(Some(AccountId(1)), limits).await?;
            far.limits().await
        };
        if let Some(set) = bed.step(step).await? {
            let ours = set.get(&Some(AccountId(1)));
            anyhow::ensure!(ours.is_some_and(|ours| ours.concurrency == Some(1)), "{set:?}");
        }
        Ok(())
    })
    .await;
}
