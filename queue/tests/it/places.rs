//! How records say where jobs are.

use rhizome_model::{AccountId, Job, JobState, Outcome};
use rhizome_queue::Submission;
use serde_json::json;

use crate::support::{Server, job, maintain, options, soon, state, take, until};

type Wire = redis::aio::MultiplexedConnection;

async fn ask<T: redis::FromRedisValue>(wire: &mut Wire, words: &[&str]) -> T {
    redis::cmd(words[0]).arg(&words[1..]).query_async(wire).await.unwrap()
}

fn job_of(account: u64) -> Job {
    Job { account: AccountId(account), ..job("volume") }
}

fn key(job: &Job) -> String {
    format!("{{n}}:job:{}", job.id)
}

/// A number has room for 822 lanes; what comes after those is written out.
#[tokio::test]
async fn more_lanes_than_there_are_numbers() {
    let server = Server::start();
    let (queue, mut wire) = (server.queue().await, server.wire().await);
    let jobs: Vec<Job> = (1..=1000).map(job_of).collect();
    assert_eq!(queue.submit(&jobs).await.unwrap(), vec![Submission::Queued; 1000]);
    assert_eq!(
        queue.submit(&jobs).await.unwrap(),
        vec![Submission::Known(JobState::Queued); 1000],
        "all are where their records say"
    );
    assert!(queue.audit().await.unwrap().faults.is_empty());
    let mut numbers = 0;
    for job in &jobs {
        let encoding: String = ask(&mut wire, &["OBJECT", "ENCODING", &key(job)]).await;
        let record: String = ask(&mut wire, &["GET", &key(job)]).await;
        assert_eq!(encoding == "int", record.parse::<i64>().is_ok(), "{record}: {encoding}");
        assert!(encoding == "int" || record.starts_with("q volume:"), "{record}");
        numbers += usize::from(encoding == "int");
    }
    assert_eq!(numbers, 822);
    let (first, last) = (&jobs[0], &jobs[999]);
    for job in [first, last] {
        assert_eq!(state(&queue, job.id).await, JobState::Queued);
        assert_eq!(queue.cancel(job.id).await.unwrap(), JobState::Cancelled);
        assert_eq!(state(&queue, job.id).await, JobState::Cancelled);
    }
    let mut runner = queue.runner(options("a", 8)).await.unwrap();
    for _ in 2..1000 {
        let lease = take(&mut runner).await;
        assert_eq!(state(&queue, lease.job.id).await, JobState::Running);
        lease.finish(&Outcome::Succeeded(json!(1))).await.unwrap();
    }
    soon("its end", runner.close()).await;
    for job in &jobs[1..999] {
        assert_eq!(state(&queue, job.id).await, JobState::Succeeded);
    }
    assert!(queue.audit().await.unwrap().faults.is_empty());
}

#[tokio::test]
async fn the_number_of_a_forgotten_lane_is_another_lanes() {
    let server = Server::start();
    let (queue, mut wire) = (server.queue().await, server.wire().await);
    let (old, stays, new) = (job_of(5), job_of(6), job_of(7));
    queue.submit(&[old.clone(), stays.clone()]).await.unwrap();
    let numbers = "{n}:lane-numbers";
    let number: String = ask(&mut wire, &["HGET", numbers, "volume:5:2"]).await;
    queue.cancel(old.id).await.unwrap();
    // As if nothing had been in it for long.
    let lane = "{n}:lane:volume:5:2";
    let long_ago = ["XSETID", lane, "2-0", "ENTRIESADDED", "1", "MAXDELETEDID", "1-0"];
    let () = ask(&mut wire, &long_ago).await;
    let upkeep = maintain(&queue);
    until("the lane is forgotten", async || {
        ask::<Option<String>>(&mut wire, &["HGET", numbers, "volume:5:2"]).await.is_none()
    })
    .await;
    drop(upkeep);
    assert!(!ask::<bool>(&mut wire, &["HEXISTS", numbers, &number]).await);
    queue.submit(std::slice::from_ref(&new)).await.unwrap();
    assert_eq!(ask::<String>(&mut wire, &["HGET", numbers, "volume:7:2"]).await, number);
    assert_eq!(ask::<String>(&mut wire, &["HGET", numbers, &number]).await, "volume:7:2");
    for job in [&stays, &new] {
        assert_eq!(state(&queue, job.id).await, JobState::Queued);
    }
    assert!(queue.audit().await.unwrap().faults.is_empty());
}

/// As earlier versions of this crate wrote all of them.
#[tokio::test]
async fn a_record_in_words_is_as_good() {
    let server = Server::start();
    let (queue, mut wire) = (server.queue().await, server.wire().await);
    let jobs = [job_of(5), job_of(5)];
    queue.submit(&jobs).await.unwrap();
    let entries: Vec<(String, Vec<Vec<u8>>)> =
        ask(&mut wire, &["XRANGE", "{n}:lane:volume:5:2", "-", "+"]).await;
    for (job, (entry, _)) in jobs.iter().zip(&entries) {
        let () = ask(&mut wire, &["SET", &key(job), &format!("q volume:5:2 {entry}")]).await;
    }
    assert_eq!(queue.cancel(jobs[0].id).await.unwrap(), JobState::Cancelled);
    let mut runner = queue.runner(options("a", 1)).await.unwrap();
    let lease = take(&mut runner).await;
    assert_eq!(lease.job.id, jobs[1].id);
    drop(lease);
    soon("its end", runner.close()).await;
    assert!(queue.audit().await.unwrap().faults.is_empty());
}

/// With more than a million keys.
async fn fill(wire: &mut Wire) {
    let fill = "for i = 1, 10000 do redis.call('SET', ARGV[1] .. i, 1) end";
    for part in 0..101 {
        let () = ask(wire, &["EVAL", fill, "0", &format!("{part} ")]).await;
    }
}

#[tokio::test]
async fn a_server_that_may_not_tick_more_often_loses_no_runner() {
    let server = Server::start();
    let (queue, mut wire) = (server.queue().await, server.wire().await);
    fill(&mut wire).await;
    let () = ask(&mut wire, &["ACL", "SETUSER", "default", "-config|set"]).await;
    let _upkeep = maintain(&queue);
    let job = job("volume");
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let mut lost = queue.runner(options("lost", 1)).await.unwrap();
    let _lease = take(&mut lost).await;
    drop(lost);
    let mut next = queue.runner(options("next", 1)).await.unwrap();
    let again = take(&mut next).await;
    assert_eq!((again.job.id, again.attempt), (job.id, 2));
}

#[tokio::test]
async fn redis_server_ticks_more_often_while_it_has_many_keys() {
    let server = Server::start();
    let (queue, mut wire) = (server.queue().await, server.wire().await);
    let _upkeep = maintain(&queue);
    let ticks = async |wire: &mut Wire| {
        ask::<Vec<String>>(wire, &["CONFIG", "GET", "hz"]).await.swap_remove(1)
    };
    assert_eq!(ticks(&mut wire).await, "10");
    fill(&mut wire).await;
    until("it ticks more often", async || ticks(&mut wire).await == "100").await;
    let () = ask(&mut wire, &["FLUSHALL", "ASYNC"]).await;
    until("it is calm again", async || ticks(&mut wire).await == "10").await;
}
