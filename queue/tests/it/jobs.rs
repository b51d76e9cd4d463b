use std::time::{Duration, Instant};

use rhizome_model::{Code, Failure, Job, JobState, Outcome, Priority};
use rhizome_queue::{CancelReason, QueueError, Submission};
use serde_json::json;

use crate::support::{
    DEADLINE, Server, job, maintain, new_id, options, runner, soon, state, take, until,
};

#[tokio::test]
async fn submitting_again_changes_nothing() {
    let server = Server::start();
    let queue = server.queue().await;
    let (one, two) = (job("volume"), job("machine"));
    let jobs = [one.clone(), two.clone()];
    assert_eq!(queue.submit(&jobs).await.unwrap(), [Submission::Queued, Submission::Queued]);
    let known = Submission::Known(JobState::Queued);
    assert_eq!(queue.submit(&jobs).await.unwrap(), [known, known]);

    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    assert_eq!(lease.job, one);
    let again = queue.submit(&jobs).await.unwrap();
    assert_eq!(again, [Submission::Known(JobState::Running), known]);
    lease.finish(&Outcome::Succeeded(json!(1))).await.unwrap();
    let again = queue.submit(&jobs).await.unwrap();
    assert_eq!(again, [Submission::Known(JobState::Succeeded), known]);
    assert_eq!(queue.stats().await.unwrap()[1].ended[&JobState::Succeeded], 1);
}

/// Whether one of them was there before, or none.
#[tokio::test]
async fn jobs_of_one_call_know_of_each_other() {
    let server = Server::start();
    let queue = server.queue().await;
    let (waiting, queued) = (JobState::Waiting, JobState::Queued);
    for is_there in [false, true] {
        let (there, first) = (job("volume"), job("volume"));
        let then = Job { after: vec![first.id], ..job("volume") };
        let mut expected = vec![Submission::Queued, Submission::Queued];
        expected.extend([queued, waiting].map(Submission::Known));
        if is_there {
            queue.submit(std::slice::from_ref(&there)).await.unwrap();
            expected.push(Submission::Known(queued));
        } else {
            expected.push(Submission::Queued);
        }
        let jobs = [&first, &then, &first, &then, &there].map(Clone::clone);
        assert_eq!(queue.submit(&jobs).await.unwrap(), expected, "{is_there}");
        assert_eq!(state(&queue, then.id).await, waiting, "{is_there}");
    }
    assert_eq!(queue.stats().await.unwrap()[0].ready, 4);
}

#[tokio::test]
async fn more_than_a_batch_is_submitted() {
    let server = Server::start();
    let queue = server.queue().await;
    let jobs: Vec<_> = (0..600).map(|_| job("volume")).collect();
    let submissions = queue.submit(&jobs).await.unwrap();
    assert_eq!(submissions, vec![Submission::Queued; 600]);
    assert_eq!(queue.stats().await.unwrap()[0].ready, 600);
}

#[tokio::test]
async fn the_urgent_are_served_first_and_equals_in_order() {
    let server = Server::start();
    let queue = server.queue().await;
    let jobs: Vec<_> = [Priority::Low, Priority::Normal, Priority::High, Priority::Normal]
        .map(|priority| Job { priority, ..job("volume") })
        .into();
    queue.submit(&jobs).await.unwrap();
    let mut runner = runner(&queue, "a").await;
    let mut served = Vec::new();
    for _ in 0..jobs.len() {
        let lease = take(&mut runner).await;
        served.push(lease.job.id);
        lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    }
    assert_eq!(served, [2, 1, 3, 0].map(|i: usize| jobs[i].id));
}

#[tokio::test]
async fn a_record_tells_the_whole_story() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = job("volume");
    assert_eq!(queue.job(job.id).await.unwrap(), None);
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let queued = queue.job(job.id).await.unwrap().unwrap();
    assert_eq!((queued.state, queued.attempts, &queued.job), (JobState::Queued, 0, &job));

    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    let running = queue.job(job.id).await.unwrap().unwrap();
    assert_eq!((running.state, running.attempts), (JobState::Running, 1));
    assert_eq!(running.runner.as_deref(), Some("a"));
    assert!(running.started_at.unwrap() >= running.submitted_at);

    let outcome = Outcome::Failed(Failure::new(Code::PoolFull, "no room"));
    lease.finish(&outcome).await.unwrap();
    let ended = queue.job(job.id).await.unwrap().unwrap();
    assert_eq!((ended.state, ended.attempts, ended.job), (JobState::Failed, 1, job));
    assert_eq!(ended.outcome, Some(outcome));
    assert!(ended.ended_at.unwrap() >= ended.started_at.unwrap());
}

#[tokio::test]
async fn an_ended_job_leaves_nothing_but_a_record_that_expires() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    lease.print(&rhizome_model::api::OutputChunk::Stdout { data: "aGk=".into() }).await.unwrap();
    lease.finish(&Outcome::Cancelled).await.unwrap();
    let mut wire = server.wire().await;
    for key in [
        format!("{{n}}:job:{}", job.id),
        format!("{{n}}:more:{}", job.id),
        format!("{{n}}:output:{}", job.id),
    ] {
        let ttl: i64 = redis::cmd("TTL").arg(key).query_async(&mut wire).await.unwrap();
        assert!((3500..=3600).contains(&ttl), "{ttl}");
    }
    let left: i64 =
        redis::cmd("XLEN").arg("{n}:lane:volume:r").query_async(&mut wire).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_queued_job_is_cancelled_at_once() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    assert_eq!(queue.cancel(job.id).await.unwrap(), JobState::Cancelled);
    assert_eq!(queue.cancel(job.id).await.unwrap(), JobState::Cancelled);
    assert_eq!(queue.wait(job.id).await.unwrap(), Outcome::Cancelled);
    let record = queue.job(job.id).await.unwrap().unwrap();
    assert_eq!((record.job, record.attempts), (job, 0));
    let stats = &queue.stats().await.unwrap()[0];
    assert_eq!((stats.ready, stats.ended[&JobState::Cancelled]), (0, 1));
    assert!(matches!(queue.cancel(new_id()).await, Err(QueueError::NoSuchJob(_))));
}

#[tokio::test]
async fn a_delayed_job_is_cancelled_at_once() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let mut runner = runner(&queue, "a").await;
    let failure = Failure::new(Code::ToolFailed, "once more");
    take(&mut runner).await.retry(&failure, Duration::from_secs(3600), &[]).await.unwrap();
    assert_eq!(state(&queue, job.id).await, JobState::Delayed);
    assert_eq!(queue.stats().await.unwrap()[0].delayed, 1);
    assert_eq!(queue.cancel(job.id).await.unwrap(), JobState::Cancelled);
    assert_eq!(queue.stats().await.unwrap()[0].delayed, 0);
    assert_eq!(queue.job(job.id).await.unwrap().unwrap().failure, Some(failure));
}

#[tokio::test]
async fn a_running_job_is_told_to_stop() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    assert_eq!(lease.cancel_reason(), None);
    assert_eq!(queue.cancel(job.id).await.unwrap(), JobState::Running);
    soon("the cancellation", lease.cancelled().cancelled_owned()).await;
    assert_eq!(lease.cancel_reason(), Some(CancelReason::Requested));
    lease.finish(&Outcome::Cancelled).await.unwrap();
    assert_eq!(queue.wait(job.id).await.unwrap(), Outcome::Cancelled);
}

#[tokio::test]
async fn a_job_that_was_told_to_stop_is_not_done_again() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    queue.cancel(job.id).await.unwrap();
    drop(lease);
    assert_eq!(soon("the end", queue.wait(job.id)).await.unwrap(), Outcome::Cancelled);
}

#[tokio::test]
async fn whoever_waits_is_woken() {
    let server = Server::start();
    let queue = server.queue().await;
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    // Another process's handle.
    let other = server.queue().await;
    let waits: Vec<_> = (0..10)
        .map(|_| {
            let (other, id) = (other.clone(), job.id);
            tokio::spawn(async move { other.wait(id).await })
        })
        .collect();
    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    assert!(waits.iter().all(|w| !w.is_finished()));
    lease.finish(&Outcome::Succeeded(json!("done"))).await.unwrap();
    for wait in waits {
        let outcome = soon("the outcome", wait).await.unwrap().unwrap();
        assert_eq!(outcome, Outcome::Succeeded(json!("done")));
    }
    let unknown = queue.wait(new_id()).await;
    assert!(matches!(unknown, Err(QueueError::NoSuchJob(_))));
}

#[tokio::test]
async fn an_idle_runner_has_a_job_at_once() {
    let server = Server::start();
    let queue = server.queue().await;
    let mut idle = runner(&queue, "a").await;
    let mut slowest = Duration::ZERO;
    let mut all = Vec::new();
    for _ in 0..50 {
        let job = job("volume");
        let begin = Instant::now();
        let (lease, submitted) =
            tokio::join!(take(&mut idle), queue.submit(std::slice::from_ref(&job)));
        let took = begin.elapsed();
        submitted.unwrap();
        slowest = slowest.max(took);
        all.push(took);
        lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    }
    all.sort_unstable();
    println!("submit to lease, on disk: p50 {:?}, slowest {slowest:?}", all[25]);
    assert!(all[25] < Duration::from_millis(500), "it is polled: {:?}", all[25]);
}

#[tokio::test]
async fn what_is_too_much_for_the_slots_goes_to_others() {
    let server = Server::start();
    let queue = server.queue().await;
    let two = rhizome_queue::RunnerOptions {
        queues: vec!["volume".into(), "machine".into()],
        ..options("a", 1)
    };
    let mut greedy = queue.runner(two).await.unwrap();
    // Comes to a reader that blocks on all lanes, in one step.
    let jobs = [Job { priority: Priority::Low, ..job("volume") }, job("volume"), job("machine")];
    queue.submit(&jobs).await.unwrap();
    let first = take(&mut greedy).await;
    let mut other = queue
        .runner(rhizome_queue::RunnerOptions {
            queues: vec!["volume".into(), "machine".into()],
            ..options("b", 2)
        })
        .await
        .unwrap();
    let (second, third) = (take(&mut other).await, take(&mut other).await);
    for lease in [first, second, third] {
        assert_eq!(lease.attempt, 1);
        lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    }
}

#[tokio::test]
async fn stats_count_what_waits_runs_and_is_dead() {
    let server = Server::start();
    let queue = server.queue().await;
    let _upkeep = maintain(&queue);
    let jobs: Vec<_> = (0..3).map(|_| Job { max_attempts: 1, ..job("volume") }).collect();
    queue.submit(&jobs).await.unwrap();
    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    until("the oldest has waited", async || queue.stats().await.unwrap()[0].oldest_ms > 20).await;
    let stats = queue.stats().await.unwrap().remove(0);
    assert_eq!((stats.queue.as_str(), stats.ready, stats.running), ("volume", 2, 1));
    lease.retry(&Failure::new(Code::ToolFailed, "no"), Duration::ZERO, &[]).await.unwrap();
    let stats = queue.stats().await.unwrap().remove(0);
    assert_eq!((stats.dead, stats.ended[&JobState::Failed]), (1, 1));
    assert!(stats.oldest_ms < DEADLINE.as_millis() as u64);
}

#[tokio::test]
async fn what_is_past_its_deadline_does_not_start() {
    let server = Server::start();
    let queue = server.queue().await;
    let late = Job { expires_at: Some(1), ..job("volume") };
    let later = Job { expires_at: Some(i64::MAX >> 10), ..job("volume") };
    queue.submit(&[late.clone(), later.clone()]).await.unwrap();
    let mut runner = runner(&queue, "a").await;
    let lease = take(&mut runner).await;
    assert_eq!(lease.job, later, "the slot went to what is in time");
    match queue.wait(late.id).await.unwrap() {
        Outcome::Failed(failure) => assert_eq!(failure.code, Code::Expired),
        other => panic!("{other:?}"),
    }
    let record = queue.job(late.id).await.unwrap().unwrap();
    assert_eq!((record.state, record.attempts), (JobState::Expired, 0));
    assert_eq!((record.started_at, record.job), (None, late));
    lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    assert_eq!(queue.stats().await.unwrap()[0].ended[&JobState::Expired], 1);
}

#[tokio::test]
async fn jobs_that_ask_for_each_other_are_cancelled_once() {
    let server = Server::start();
    let queue = server.queue().await;
    let (a, b) = (job("volume"), job("volume"));
    let jobs = [Job { parent: Some(b.id), ..a.clone() }, Job { parent: Some(a.id), ..b.clone() }];
    queue.submit(&jobs).await.unwrap();
    let cancelled = soon("the end of the cancellation", queue.cancel(a.id)).await;
    assert_eq!(cancelled.unwrap(), JobState::Cancelled);
    assert_eq!(state(&queue, b.id).await, JobState::Cancelled);
}
