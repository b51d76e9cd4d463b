//! Signed operations: a nonce leads to one job, whoever sends it again and whenever.

use rhizome_model::{AccountId, Capacity, Job, JobState, Outcome};
use rhizome_queue::{Acceptance, Operate, Operation, Queue};
use serde_json::json;

use crate::support::{Server, capacity, deployment, job, maintain, runner, state, take, task};
use crate::tasks::{ACCEPTED, accept_with};

async fn operate(queue: &Queue, nonce: &str, digest: &str, job: &Job) -> Operation {
    let nonce_expires = 4_000_000_000;
    queue.operate(Operate { nonce, nonce_expires, digest, job }).await.unwrap()
}

#[tokio::test]
async fn the_same_envelope_is_the_same_job_and_its_nonce_is_used_up() {
    let server = Server::start();
    let queue = server.queue().await;
    let mut runner = runner(&queue, "one").await;
    let (first, other) = (job("volume"), job("volume"));
    assert_eq!(operate(&queue, "nonce", "digest", &first).await, Operation::Accepted);
    assert_eq!(operate(&queue, "nonce", "digest", &first).await, Operation::Same);
    assert_eq!(operate(&queue, "nonce", "another", &other).await, Operation::Replayed);
    assert!(queue.job(other.id).await.unwrap().is_none(), "a refusal changes nothing");

    let lease = take(&mut runner).await;
    assert_eq!(lease.job.id, first.id);
    lease.finish(&Outcome::Succeeded(json!(1))).await.unwrap();
    assert_eq!(operate(&queue, "nonce", "digest", &first).await, Operation::Same);
    assert_eq!(state(&queue, first.id).await, JobState::Succeeded, "it is not done again");

    // Another account has nonces of its own.
    let foreign = Job { account: AccountId(9), ..job("volume") };
    assert_eq!(operate(&queue, "nonce", "third", &foreign).await, Operation::Accepted);
}

#[tokio::test]
async fn deployments_and_operations_share_their_nonces() {
    let server = Server::start();
    let queue = server.queue().await;
    let task = task(&deployment("demo"), 1, capacity(1000, 1));
    let one = Job { account: task.deployment.account, ..job("volume") };
    assert_eq!(accept_with(&queue, &task, "first").await, ACCEPTED);
    assert_eq!(operate(&queue, "first", "digest", &one).await, Operation::Replayed);
    assert_eq!(operate(&queue, "second", "digest", &one).await, Operation::Accepted);
    let next = rhizome_model::Task { reserved: Capacity::default(), ..task };
    assert_eq!(accept_with(&queue, &next, "second").await, Acceptance::Replayed);
}

#[tokio::test]
async fn of_one_order_one_is_done_at_a_time() {
    let server = Server::start();
    let queue = server.queue().await;
    let _upkeep = maintain(&queue);
    let mut runner = runner(&queue, "one").await;
    let ordered = || Job { order: Some("resize 1/demo".into()), ..job("volume") };
    let (first, second) = (ordered(), ordered());
    assert_eq!(operate(&queue, "a", "a", &first).await, Operation::Accepted);
    assert_eq!(operate(&queue, "b", "b", &second).await, Operation::Accepted);
    let lease = take(&mut runner).await;
    assert_eq!(lease.job.id, first.id);
    assert_eq!(state(&queue, second.id).await, JobState::Waiting);
    lease.finish(&Outcome::Succeeded(json!(null))).await.unwrap();
    drop(lease);
    assert_eq!(take(&mut runner).await.job.id, second.id);
}
