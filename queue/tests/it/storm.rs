//! Two thousand jobs, four runners, and a bad day: everything ends exactly once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rhizome_model::{Code, Failure, Job, JobId, JobState, Outcome};
use rhizome_queue::{Durability, Lease, Queue};
use serde_json::json;

use crate::support::{Server, job, maintain, options, soon};

const JOBS: usize = 2000;

type Ends = Arc<Mutex<HashMap<JobId, u32>>>;

fn dice(sides: u128) -> u128 {
    uuid::Uuid::new_v4().as_u128() % (1 << 32) % sides
}

/// Ends well, mostly; else fails, gives back, stops half-way, or is too late.
async fn work(lease: Lease, ends: Ends) {
    match dice(20) {
        0 => drop(lease),
        1 => lease.release().await.unwrap(),
        2 => {
            let failure = Failure::new(Code::ToolFailed, "bad luck");
            let _ = lease.retry(&failure, Duration::from_millis(20), &[]).await;
        }
        3 => {
            tokio::time::sleep(Duration::from_millis(dice(30) as u64)).await;
            end(lease, ends).await;
        }
        _ => end(lease, ends).await,
    }
}

async fn end(lease: Lease, ends: Ends) {
    if lease.finish(&Outcome::Succeeded(json!(lease.attempt))).await.is_ok() {
        *ends.lock().unwrap().entry(lease.job.id).or_default() += 1;
    }
}

/// A runner that works for a while and then dies with all that it does, if it is mortal.
async fn live(queue: Queue, name: String, ends: Ends, life: Option<Duration>) {
    let mut runner = queue.runner(options(&name, 8)).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    let working = async {
        while let Some(lease) = runner.next().await {
            tasks.spawn(work(lease, ends.clone()));
            // Now and then somebody pulls a plug.
            if dice(50) == 0 {
                tasks.abort_all();
            }
            while tasks.try_join_next().is_some() {}
        }
    };
    match life {
        Some(life) => {
            let _ = tokio::time::timeout(life, working).await;
            drop(tasks);
            drop(runner);
            queue.release_runner(&name).await.unwrap();
        }
        None => working.await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_ends_exactly_once() {
    let server = Server::start();
    let queue = server.queue_with(Durability::Everysec).await;
    let _upkeep = maintain(&queue);
    let ends = Ends::default();
    let jobs: Vec<_> = (0..JOBS).map(|_| Job { max_attempts: 50, ..job("volume") }).collect();
    let begin = Instant::now();
    let mut runners = tokio::task::JoinSet::new();
    for n in 0..4 {
        let (queue, ends) = (queue.clone(), ends.clone());
        runners.spawn(async move {
            for life in 0.. {
                let mortal = (n > 0).then(|| Duration::from_millis(100 + dice(300) as u64));
                live(queue.clone(), format!("r{n}-{life}"), ends.clone(), mortal).await;
            }
        });
    }
    queue.submit(&jobs).await.unwrap();
    for job in &jobs {
        let outcome = soon("an outcome", queue.wait(job.id)).await.unwrap();
        assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?}");
    }
    println!("{JOBS} jobs on a bad day: {:?}", begin.elapsed());
    runners.shutdown().await;
    let ends = ends.lock().unwrap().clone();
    assert!(ends.values().all(|n| *n == 1), "some ended twice");
    // Whoever was killed between the end and its answer could not count it.
    assert!(ends.len() > JOBS * 9 / 10 && ends.len() <= JOBS, "{}", ends.len());
    let stats = queue.stats().await.unwrap().remove(0);
    assert_eq!((stats.ready, stats.running, stats.delayed), (0, 0, 0));
    assert_eq!(queue.audit().await.unwrap().faults, [""; 0]);
    assert_eq!(stats.ended.into_iter().collect::<Vec<_>>(), [(JobState::Succeeded, JOBS as u64)]);
}
