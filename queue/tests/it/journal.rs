//! The journal of a script: with its jobs or not at all, under its lease or not at all.

use rhizome_model::{
    Capacity, DesiredResource, Effect, JobState, NodeFacts, NodeId, Outcome, Phase, Step, Task,
    WorkloadKind,
};
use rhizome_queue::{Entries, Lease, Queue, QueueError};
use serde_json::json;

use crate::support::{Server, capacity, deployment, event, job, state, take, task};
use crate::tasks::{ACCEPTED, accept, scripts};

pub fn volume(name: &str, line: usize) -> DesiredResource {
    let name = name.parse().unwrap();
    DesiredResource { name, kind: WorkloadKind::Volume, spec: json!({ "size": 1 << 30 }), line }
}

pub fn declares(name: &str, line: usize) -> Step {
    let effect = Effect::Declare { resource: volume(name, line) };
    Step { by: "1-0".into(), at: 1, effect }
}

async fn begun(queue: &Queue) -> (Task, Lease) {
    let task = task(&deployment("demo"), 1, capacity(1000, 1));
    assert_eq!(accept(queue, &task, None).await, ACCEPTED);
    let mut runner = scripts(queue, "a").await;
    let lease = take(&mut runner).await;
    // It goes on holding the lease.
    std::mem::forget(runner);
    (Task { phase: Phase::Running, ..task }, lease)
}

#[tokio::test]
async fn what_a_script_does_is_there_together_with_its_jobs() {
    let server = Server::start();
    let queue = server.queue().await;
    let (mut task, lease) = begun(&queue).await;
    let work = job("volume");
    task.reserved = capacity(2000, 2);
    let facts = NodeFacts {
        id: NodeId(1),
        farm: rhizome_model::FarmId(1),
        address: "400::1".parse().unwrap(),
        capacity: capacity(8000, 8),
    };
    let entries = Entries {
        facts: Some(facts.clone()),
        steps: vec![(0, declares("a", 1)), (1, declares("b", 2))],
        declared: 2,
        jobs: vec![work.clone()],
        events: vec![event(&task, "declared")],
        ..Entries::default()
    };
    lease.journal(&task, &entries).await.unwrap();
    assert_eq!(state(&queue, work.id).await, JobState::Queued);
    assert_eq!(queue.reserved().await.unwrap(), task.reserved);
    let done = Outcome::Succeeded(json!({ "path": "/a" }));
    let end = Entries { results: vec![(0, done.clone())], ..Entries::default() };
    lease.journal(&task, &end).await.unwrap();

    let journal = queue.journal(&task.deployment).await.unwrap();
    assert_eq!(journal.facts, Some(facts));
    assert_eq!(journal.steps, [(0, declares("a", 1)), (1, declares("b", 2))].into());
    assert_eq!(journal.results, [(0, done)].into());
    task.declared = vec![volume("a", 1), volume("b", 2)];
    assert_eq!(queue.task(&task.deployment).await.unwrap(), Some(task.clone()));
    assert_eq!(queue.tasks().await.unwrap(), [task]);
}

#[tokio::test]
async fn what_does_not_fit_leaves_nothing() {
    let server = Server::start();
    let queue = server.queue().await;
    let (task, lease) = begun(&queue).await;
    let work = job("volume");
    let entries = Entries {
        steps: vec![(0, declares("a", 1))],
        declared: 1,
        jobs: vec![work.clone()],
        ..Entries::default()
    };
    let large = Task { reserved: capacity(9000, 1), ..task.clone() };
    let refused = lease.journal(&large, &entries).await;
    assert!(matches!(refused, Err(QueueError::Shortfall(_))), "{refused:?}");
    assert_eq!(queue.job(work.id).await.unwrap().map(|r| r.state), None);
    assert!(queue.journal(&task.deployment).await.unwrap().steps.is_empty());
    assert_eq!(queue.reserved().await.unwrap(), task.reserved);
}

#[tokio::test]
async fn who_lost_the_lease_writes_nothing() {
    let server = Server::start();
    let queue = server.queue().await;
    let (task, lease) = begun(&queue).await;
    lease.release().await.unwrap();
    let entries = Entries {
        steps: vec![(0, declares("a", 1))],
        jobs: vec![job("volume")],
        ..Entries::default()
    };
    assert!(matches!(lease.journal(&task, &entries).await, Err(QueueError::Fenced)));
    assert!(queue.journal(&task.deployment).await.unwrap().steps.is_empty());
}

#[tokio::test]
async fn a_journal_goes_with_success_and_stays_with_failure() {
    for (phase, stays) in [(Phase::Ready, false), (Phase::Failed, true)] {
        let server = Server::start();
        let queue = server.queue().await;
        let (mut task, lease) = begun(&queue).await;
        let entries =
            Entries { steps: vec![(0, declares("a", 1))], declared: 1, ..Entries::default() };
        lease.journal(&task, &entries).await.unwrap();
        task.phase = phase;
        lease.finish_with(&Outcome::Succeeded(json!(null)), Some(&task), &[]).await.unwrap();
        let journal = queue.journal(&task.deployment).await.unwrap();
        assert_eq!(!journal.steps.is_empty(), stays, "{phase}");
        let held = queue.task(&task.deployment).await.unwrap().unwrap();
        assert!(held.declared.is_empty());
        let next = crate::support::task(&task.deployment, 2, Capacity::default());
        assert_eq!(accept(&queue, &next, Some((1, phase))).await, ACCEPTED);
        assert!(queue.journal(&task.deployment).await.unwrap().steps.is_empty());
    }
}
