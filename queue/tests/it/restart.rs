//! redis-server is killed and comes back: everything goes on by itself.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use rhizome_model::{Code, Failure, JobState, Outcome};
use serde_json::json;

use crate::support::{
    Server, deployment, event, job, maintain, message, options, runner, soon, state, take, task,
};

#[tokio::test]
async fn waiters_runners_followers_and_upkeep_go_on() {
    let mut server = Server::start();
    let queue = server.queue().await;
    let _upkeep = maintain(&queue);
    let mut runner = queue.runner(options("a", 2)).await.unwrap();
    let held = job("volume");
    queue.submit(std::slice::from_ref(&held)).await.unwrap();
    let lease = take(&mut runner).await;
    let (waiter, id) = (queue.clone(), held.id);
    let waiting = tokio::spawn(async move { waiter.wait(id).await });
    let output = tokio::spawn(queue.output(held.id).map(Result::unwrap).collect::<Vec<_>>());
    let a_task = task(&deployment("demo"), 1, Default::default());
    queue.publish(&[event(&a_task, "before")]).await.unwrap();
    let mut events = Box::pin(queue.follow(None));
    soon("an event", events.next()).await.unwrap().unwrap();

    server.kill();
    let finishing = tokio::spawn(async move {
        lease.finish(&Outcome::Succeeded(json!("kept"))).await.unwrap();
    });
    let next = job("volume");
    let (submitter, jobs) = (queue.clone(), [next.clone()]);
    let submitting = tokio::spawn(async move { submitter.submit(&jobs).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!finishing.is_finished() && !submitting.is_finished() && !waiting.is_finished());
    server.start_again();
    let back = Instant::now();

    soon("the finish", finishing).await.unwrap();
    let outcome = soon("the outcome", waiting).await.unwrap().unwrap();
    assert_eq!(outcome, Outcome::Succeeded(json!("kept")));
    assert_eq!(soon("the output", output).await.unwrap().len(), 1);
    soon("the submission", submitting).await.unwrap().unwrap();
    let lease = take(&mut runner).await;
    println!("from the start of redis-server to the next lease: {:?}", back.elapsed());
    assert_eq!((lease.job.id, lease.attempt), (next.id, 1));

    queue.publish(&[event(&a_task, "after")]).await.unwrap();
    let (_, event) = soon("an event", events.next()).await.unwrap().unwrap();
    assert_eq!(message(&event), "after");
    let failure = Failure::new(Code::ToolFailed, "again");
    lease.retry(&failure, Duration::from_millis(10), &[]).await.unwrap();
    drop(lease);
    assert_eq!(take(&mut runner).await.attempt, 2);
}

#[tokio::test]
async fn an_outage_longer_than_a_silence_costs_no_lease() {
    let mut server = Server::start();
    let queue = server.queue().await;
    let _upkeep = maintain(&queue);
    let mut runner = runner(&queue, "a").await;
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let lease = take(&mut runner).await;
    server.kill();
    // Longer than the second after which a runner counts as dead.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    server.start_again();
    // Sweeps come every 100 ms; in the second after this the heartbeat is back.
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        assert_eq!(state(&queue, job.id).await, JobState::Running);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(lease.cancel_reason(), None);
    lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    assert_eq!(queue.job(job.id).await.unwrap().unwrap().attempts, 1);
}

#[tokio::test]
async fn jobs_survive_kills_in_the_middle_of_everything() {
    let mut server = Server::start();
    let queue = server.queue().await;
    let _upkeep = maintain(&queue);
    let mut runner = queue.runner(options("a", 4)).await.unwrap();
    let worker = tokio::spawn(async move {
        while let Some(lease) = runner.next().await {
            tokio::spawn(async move {
                let outcome = Outcome::Succeeded(json!(lease.job.id));
                lease.finish(&outcome).await.unwrap();
            });
        }
    });
    let jobs: Vec<_> = (0..300).map(|_| job("volume")).collect();
    let (submitter, all) = (queue.clone(), jobs.clone());
    let submitting = tokio::spawn(async move {
        for some in all.chunks(3) {
            submitter.submit(some).await.unwrap();
        }
    });
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.kill();
        server.start_again();
    }
    soon("all submissions", submitting).await.unwrap();
    for job in &jobs {
        let outcome = soon("an outcome", queue.wait(job.id)).await.unwrap();
        assert_eq!(outcome, Outcome::Succeeded(json!(job.id)));
    }
    let stats = queue.stats().await.unwrap().remove(0);
    assert_eq!((stats.ready, stats.running), (0, 0));
    assert_eq!(stats.ended.into_iter().collect::<Vec<_>>(), [(JobState::Succeeded, 300)]);
    worker.abort();
}

#[tokio::test]
async fn a_runner_goes_on_after_everything_was_flushed() {
    let server = Server::start();
    let queue = server.queue().await;
    let mut runner = queue.runner(options("a", 2)).await.unwrap();
    queue.submit(&[job("volume")]).await.unwrap();
    let lost = take(&mut runner).await;
    let mut wire = server.wire().await;
    redis::cmd("FLUSHALL").query_async::<()>(&mut wire).await.unwrap();
    soon("the news of the loss", lost.cancelled().cancelled_owned()).await;
    let finished = lost.finish(&Outcome::Cancelled).await;
    assert!(matches!(finished, Err(rhizome_queue::QueueError::Fenced)), "{finished:?}");
    let next = job("volume");
    queue.submit(std::slice::from_ref(&next)).await.unwrap();
    let lease = take(&mut runner).await;
    assert_eq!(lease.job.id, next.id);
    lease.finish(&Outcome::Succeeded(json!(1))).await.unwrap();
    assert_eq!(queue.wait(next.id).await.unwrap(), Outcome::Succeeded(json!(1)));
}

#[tokio::test]
async fn a_frozen_redis_server_costs_nothing_but_time() {
    let server = Server::start();
    let queue = server.queue().await;
    let _upkeep = maintain(&queue);
    let mut runner = runner(&queue, "a").await;
    let jobs = [job("volume"), job("volume")];
    queue.submit(&jobs[..1]).await.unwrap();
    let lease = take(&mut runner).await;
    server.signal("STOP");
    let submitter = queue.clone();
    let second = jobs[1].clone();
    let submitting = tokio::spawn(async move { submitter.submit(&[second]).await });
    // Longer than the second after which a runner counts as dead.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!submitting.is_finished());
    server.signal("CONT");
    soon("the submission", submitting).await.unwrap().unwrap();
    lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    drop(lease);
    let lease = take(&mut runner).await;
    assert_eq!((lease.job.id, lease.attempt), (jobs[1].id, 1));
}

#[tokio::test]
async fn a_runner_stops_in_time_without_a_redis_server() {
    let mut server = Server::start();
    let queue = server.queue().await;
    let mut runner = runner(&queue, "a").await;
    queue.submit(&[job("volume")]).await.unwrap();
    let lease = take(&mut runner).await;
    server.kill();
    drop(lease);
    soon("the end of the runner", runner.close()).await;
}
