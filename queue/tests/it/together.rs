//! What goes to redis-server together is still judged one by one.

use std::collections::HashSet;

use futures_util::future::join_all;
use rhizome_model::{JobState, Outcome};
use rhizome_queue::{Durability, QueueError, Submission};
use serde_json::json;

use crate::support::{Server, job, options, soon, state, take};

const MANY: usize = 600;

#[tokio::test]
async fn a_fenced_finish_does_not_fail_its_neighbours() {
    let server = Server::start();
    let queue = server.queue_with(Durability::None).await;
    let jobs: Vec<_> = (0..MANY).map(|_| job("volume")).collect();
    queue.submit(&jobs).await.unwrap();
    let mut runner = queue.runner(options("a", MANY)).await.unwrap();
    let mut leases = Vec::new();
    for _ in 0..MANY {
        leases.push(take(&mut runner).await);
    }
    // Every third is no longer ours.
    let mut wire = server.wire().await;
    let (mut lost, mut pending) = (HashSet::new(), redis::cmd("XPENDING"));
    pending.arg("{n}:lane:volume:1:2").arg("g").arg("-").arg("+").arg(MANY);
    let held: redis::streams::StreamPendingCountReply =
        pending.query_async(&mut wire).await.unwrap();
    for (n, entry) in held.ids.iter().enumerate().filter(|(n, _)| n % 3 == 0) {
        let mut claim = redis::cmd("XCLAIM");
        claim.arg("{n}:lane:volume:1:2").arg("g").arg("thief").arg(0).arg(&entry.id);
        claim.query_async::<redis::Value>(&mut wire).await.unwrap();
        lost.insert(jobs[n].id);
    }
    let outcome = Outcome::Succeeded(json!("mine"));
    let ended = join_all(leases.iter().map(|lease| lease.finish(&outcome))).await;
    for (lease, ended) in leases.iter().zip(ended) {
        match ended {
            Ok(()) => assert!(!lost.contains(&lease.job.id), "{} was lost", lease.job.id),
            Err(QueueError::Fenced) => assert!(lost.contains(&lease.job.id)),
            Err(error) => panic!("{error}"),
        }
    }
    for job in &jobs {
        let expected = if lost.contains(&job.id) { JobState::Running } else { JobState::Succeeded };
        assert_eq!(state(&queue, job.id).await, expected);
    }
    let stats = queue.stats().await.unwrap().remove(0);
    assert_eq!((stats.ready, stats.running), (0, lost.len() as u64));
    assert_eq!(stats.ended[&JobState::Succeeded], (MANY - lost.len()) as u64);
}

#[tokio::test]
async fn jobs_submitted_at_once_are_each_told_what_became_of_them() {
    let server = Server::start();
    let queue = server.queue_with(Durability::None).await;
    let jobs: Vec<_> = (0..MANY).map(|_| job("volume")).collect();
    queue.submit(&jobs[..MANY / 2]).await.unwrap();
    let each = join_all(jobs.iter().map(|job| queue.submit(std::slice::from_ref(job)))).await;
    for (n, submission) in each.into_iter().enumerate() {
        let known = Submission::Known(JobState::Queued);
        let expected = if n < MANY / 2 { known } else { Submission::Queued };
        assert_eq!(submission.unwrap(), [expected], "job {n}");
    }
    assert_eq!(queue.stats().await.unwrap()[0].ready, MANY as u64);
}

#[tokio::test]
async fn who_waits_is_woken_by_news_of_many() {
    let server = Server::start();
    let queue = server.queue_with(Durability::None).await;
    let jobs: Vec<_> = (0..MANY).map(|_| job("volume")).collect();
    queue.submit(&jobs).await.unwrap();
    let waiting: Vec<_> = jobs
        .iter()
        .map(|job| {
            let (queue, id) = (queue.clone(), job.id);
            tokio::spawn(async move { queue.wait(id).await.unwrap() })
        })
        .collect();
    let mut runner = queue.runner(options("a", MANY)).await.unwrap();
    let mut working = tokio::task::JoinSet::new();
    for _ in 0..MANY {
        let lease = take(&mut runner).await;
        working.spawn(async move { lease.finish(&Outcome::Succeeded(json!(1))).await.unwrap() });
    }
    working.join_all().await;
    for outcome in soon("all the news", join_all(waiting)).await {
        assert_eq!(outcome.unwrap(), Outcome::Succeeded(json!(1)));
    }
}

#[tokio::test]
async fn many_leases_outlive_a_wire_that_breaks() {
    let server = Server::start();
    let queue = server.queue_with(Durability::None).await;
    let jobs: Vec<_> = (0..MANY).map(|_| job("volume")).collect();
    queue.submit(&jobs).await.unwrap();
    let mut runner = queue.runner(options("a", MANY + 1)).await.unwrap();
    let mut leases = Vec::new();
    for _ in 0..MANY {
        leases.push(take(&mut runner).await);
    }
    let mut wire = server.wire().await;
    let mut cut = redis::cmd("CLIENT");
    cut.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
    let killed: u64 = cut.query_async(&mut wire).await.unwrap();
    assert!(killed > 0);
    // It compares what it holds before it takes another.
    let one = job("volume");
    queue.submit(std::slice::from_ref(&one)).await.unwrap();
    let last = take(&mut runner).await;
    assert_eq!(last.job.id, one.id);
    let lost = leases.iter().filter(|lease| lease.cancel_reason().is_some()).count();
    assert_eq!(lost, 0, "of {MANY} leases");
    let outcome = Outcome::Succeeded(json!(1));
    let ends = leases.iter().chain([&last]).map(|lease| lease.finish(&outcome));
    for end in soon("the ends", join_all(ends)).await {
        end.unwrap();
    }
}
