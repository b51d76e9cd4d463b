use std::time::{Duration, Instant};

use rhizome_model::api::OutputChunk;
use rhizome_model::{Code, Failure, Job, JobState, Outcome};
use rhizome_queue::{CancelReason, Lease, Queue, QueueError, Retried};
use serde_json::json;

use crate::support::{
    Server, deployment, job, maintain, options, runner, soon, state, take, task, until,
};

fn failure() -> Failure {
    Failure::new(Code::ToolFailed, "it did not work")
}

async fn submit_one(queue: &Queue, max_attempts: u32) -> Job {
    let job = Job { max_attempts, ..job("volume") };
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    job
}

async fn is_fenced(lease: &Lease) {
    let done = Outcome::Succeeded(json!("stale"));
    let task = task(&deployment("x"), 1, Default::default());
    let name = "data".parse().unwrap();
    let chunk = OutputChunk::Stdout { data: String::new() };
    let writes = [
        lease.finish(&done).await,
        lease.finish_with(&done, Some(&task), &[]).await,
        lease.update(&task, &[]).await,
        lease.set_status(&task.deployment, &name, Some(&json!(1)), &[]).await,
        lease.print(&chunk).await,
        lease.retry(&failure(), Duration::ZERO, &[]).await.map(|_| ()),
    ];
    for (n, write) in writes.into_iter().enumerate() {
        assert!(matches!(write, Err(QueueError::Fenced)), "write {n}: {write:?}");
    }
}

#[tokio::test]
async fn a_lost_lease_writes_nothing() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = submit_one(&queue, 3).await;
    let mut dead = runner(&queue, "dead").await;
    let stale = take(&mut dead).await;
    let mut alive = runner(&queue, "alive").await;
    let begin = Instant::now();
    assert_eq!(queue.release_runner("dead").await.unwrap(), 1);
    let lease = take(&mut alive).await;
    println!("from the death of a runner to the next lease: {:?}", begin.elapsed());
    assert_eq!((lease.job.id, lease.attempt), (job.id, 2));
    soon("the news of the loss", stale.cancelled().cancelled_owned()).await;
    assert_eq!(stale.cancel_reason(), Some(CancelReason::Lost));

    is_fenced(&stale).await;
    stale.release().await.unwrap();
    assert_eq!(state(&queue, job.id).await, JobState::Running, "a stale release changes nothing");
    lease.finish(&Outcome::Succeeded(json!("fresh"))).await.unwrap();
    is_fenced(&stale).await;
    assert_eq!(queue.wait(job.id).await.unwrap(), Outcome::Succeeded(json!("fresh")));
    let record = queue.job(job.id).await.unwrap().unwrap();
    assert_eq!(record.attempts, 2);
}

#[tokio::test]
async fn ending_twice_is_ending_once() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = submit_one(&queue, 3).await;
    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    lease.finish(&Outcome::Succeeded(json!(1))).await.unwrap();
    lease.finish(&Outcome::Succeeded(json!(2))).await.unwrap();
    assert_eq!(queue.wait(job.id).await.unwrap(), Outcome::Succeeded(json!(1)));
    assert_eq!(queue.stats().await.unwrap()[0].ended[&JobState::Succeeded], 1);
}

#[tokio::test]
async fn retries_are_delayed_then_exhausted_then_dead() {
    let server = Server::start();
    let queue = server.queue().await;
    let _upkeep = maintain(&queue);
    let job = submit_one(&queue, 3).await;
    let mut runner = runner(&queue, "a").await;
    for attempt in 1..=2 {
        let lease = take(&mut runner).await;
        assert_eq!(lease.attempt, attempt);
        let pause = Duration::from_millis(50);
        let begin = Instant::now();
        assert_eq!(lease.retry(&failure(), pause, &[]).await.unwrap(), Retried::Later);
        assert_eq!(lease.retry(&failure(), pause, &[]).await.unwrap(), Retried::Later);
        drop(lease);
        until("it is due", async || state(&queue, job.id).await != JobState::Delayed).await;
        assert!(begin.elapsed() >= pause);
    }
    let lease = take(&mut runner).await;
    assert_eq!(lease.attempt, 3);
    let last = lease.retry(&failure(), Duration::ZERO, &[]).await.unwrap();
    assert_eq!(last, Retried::Exhausted);
    assert_eq!(queue.wait(job.id).await.unwrap(), Outcome::Failed(failure()));
    let record = queue.job(job.id).await.unwrap().unwrap();
    assert_eq!((record.state, record.attempts), (JobState::Failed, 3));
    assert_eq!(queue.stats().await.unwrap()[0].dead, 1);
}

#[tokio::test]
async fn an_earlier_job_wakes_the_upkeep() {
    let server = Server::start();
    let queue = server.queue().await;
    let slow = rhizome_queue::MaintainOptions {
        sweep: Duration::from_secs(3600),
        grace: Duration::from_secs(3600),
        fence: None,
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let upkeep = queue.clone();
    tokio::spawn(async move { upkeep.maintain_with(slow, stop).await });
    let mut runner = runner(&queue, "a").await;
    submit_one(&queue, 3).await;
    let lease = take(&mut runner).await;
    lease.retry(&failure(), Duration::from_secs(3600), &[]).await.unwrap();
    drop(lease);
    submit_one(&queue, 3).await;
    let lease = take(&mut runner).await;
    lease.retry(&failure(), Duration::from_millis(100), &[]).await.unwrap();
    drop(lease);
    let begin = Instant::now();
    assert_eq!(take(&mut runner).await.attempt, 2);
    assert!(begin.elapsed() < Duration::from_secs(3), "it came by chance: {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_job_that_kills_its_runners_is_set_aside() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = submit_one(&queue, 2).await;
    for name in ["first", "second"] {
        let mut victim = runner(&queue, name).await;
        let lease = take(&mut victim).await;
        assert_eq!(queue.release_runner(name).await.unwrap(), 1);
        drop(lease);
    }
    match soon("the end", queue.wait(job.id)).await.unwrap() {
        Outcome::Failed(failure) => assert_eq!(failure.code, Code::Quarantined),
        other => panic!("{other:?}"),
    }
    assert_eq!(state(&queue, job.id).await, JobState::Quarantined);
    let stats = queue.stats().await.unwrap().remove(0);
    assert_eq!((stats.dead, stats.ready, stats.running), (1, 0, 0));
}

#[tokio::test]
async fn a_dropped_lease_goes_back_and_counts() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = submit_one(&queue, 2).await;
    let mut runner = runner(&queue, "a").await;
    drop(take(&mut runner).await);
    let lease = take(&mut runner).await;
    assert_eq!((lease.job.id, lease.attempt), (job.id, 2));
    drop(lease);
    soon("the end", queue.wait(job.id)).await.unwrap();
    assert_eq!(state(&queue, job.id).await, JobState::Quarantined);
}

#[tokio::test]
async fn a_released_job_was_not_tried_and_keeps_its_turn() {
    let server = Server::start();
    let queue = server.queue().await;
    let first = submit_one(&queue, 1).await;
    submit_one(&queue, 1).await;
    let mut runner = runner(&queue, "a").await;
    for _ in 0..5 {
        let lease = take(&mut runner).await;
        assert_eq!((lease.job.id, lease.attempt), (first.id, 1));
        lease.release().await.unwrap();
    }
    let lease = take(&mut runner).await;
    lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
}

#[tokio::test]
async fn a_silent_runner_is_given_up() {
    let server = Server::start();
    let queue = server.queue().await;
    let _upkeep = maintain(&queue);
    let job = submit_one(&queue, 3).await;
    let mut silent = runner(&queue, "silent").await;
    let lease = take(&mut silent).await;
    // Dies with all its tasks: nobody says a word any more.
    drop(silent);
    let mut alive = runner(&queue, "alive").await;
    let begin = Instant::now();
    let second = take(&mut alive).await;
    println!("from silence to the next lease: {:?} (silence counts after 1 s)", begin.elapsed());
    assert_eq!((second.job.id, second.attempt), (job.id, 2));
    is_fenced(&lease).await;
    second.finish(&Outcome::Succeeded(json!(null))).await.unwrap();

    let mut wire = server.wire().await;
    until("its consumers are forgotten", async || {
        let consumers: redis::streams::StreamInfoConsumersReply = redis::cmd("XINFO")
            .arg("CONSUMERS")
            .arg("{n}:lane:volume:r")
            .arg("g")
            .query_async(&mut wire)
            .await
            .unwrap();
        consumers.consumers.iter().all(|c| c.name == "alive")
    })
    .await;
}

#[tokio::test]
async fn a_runner_that_was_given_up_by_mistake_goes_on() {
    let server = Server::start();
    let queue = server.queue().await;
    let _upkeep = maintain(&queue);
    let mut zombie = runner(&queue, "zombie").await;
    for _ in 0..3 {
        let job = submit_one(&queue, 9).await;
        let stale = take(&mut zombie).await;
        queue.release_runner("zombie").await.unwrap();
        soon("the news of the loss", stale.cancelled().cancelled_owned()).await;
        drop(stale);
        let lease = take(&mut zombie).await;
        assert_eq!((lease.job.id, lease.attempt), (job.id, 2));
        assert_eq!(lease.cancel_reason(), None);
        lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    }
}

#[tokio::test]
async fn a_drained_runner_takes_nothing_and_gives_back_what_is_left() {
    let server = Server::start();
    let queue = server.queue().await;
    let mut old = queue.runner(options("old", 2)).await.unwrap();
    let one = submit_one(&queue, 1).await;
    let kept = take(&mut old).await;
    // Claimed, but never asked for.
    let two = submit_one(&queue, 1).await;
    until("it is claimed", async || state(&queue, two.id).await == JobState::Running).await;
    old.drain();
    assert!(old.next().await.is_none());
    let three = submit_one(&queue, 1).await;
    kept.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    soon("the end of the runner", old.close()).await;
    assert_eq!(state(&queue, one.id).await, JobState::Succeeded);
    let mut new = queue.runner(options("new", 2)).await.unwrap();
    let leases = [take(&mut new).await, take(&mut new).await];
    assert_eq!(leases.each_ref().map(|l| (l.job.id, l.attempt)), [(two.id, 1), (three.id, 1)]);
    for lease in leases {
        lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    }
}

#[tokio::test]
async fn a_job_that_cannot_be_read_ends_and_harms_nobody() {
    let server = Server::start();
    let queue = server.queue().await;
    let mut runner = runner(&queue, "a").await;
    let mut wire = server.wire().await;
    let odd = crate::support::new_id();
    let key = format!("{{n}}:job:{odd}");
    let entry = {
        let value = [&[0, 0][..], &odd.0, b"\"from\":\"elsewhere\"}"].concat();
        let mut record = redis::cmd("SET");
        record.arg(&key).arg("q volume:r 1-1");
        record.query_async::<()>(&mut wire).await.unwrap();
        let mut add = redis::cmd("XADD");
        add.arg("{n}:lane:volume:r").arg("1-1").arg("j").arg(value).arg("a").arg(1);
        add.query_async::<String>(&mut wire).await.unwrap()
    };
    assert!(!entry.is_empty());
    match soon("the end", queue.wait(odd)).await.unwrap() {
        Outcome::Failed(failure) => assert_eq!(failure.code, Code::Internal),
        other => panic!("{other:?}"),
    }
    let good = submit_one(&queue, 3).await;
    assert_eq!(take(&mut runner).await.job.id, good.id);
}
