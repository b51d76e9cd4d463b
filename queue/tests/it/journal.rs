//! The journal of a script: with its jobs or not at all, under its lease or not at all.

use rhizome_model::{
    Capacity, Code, DesiredResource, Effect, Ended, Ends, Failure, Job, JobState, NodeFacts,
    NodeId, Outcome, Phase, Step, Task, WorkloadKind,
};
use rhizome_queue::{Entries, Lease, Queue, QueueError, Runner};
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
    let mut runner = scripts(queue, "a").await;
    let both = begun_by(&mut runner, queue).await;
    // It goes on holding the lease.
    std::mem::forget(runner);
    both
}

async fn begun_by(runner: &mut Runner, queue: &Queue) -> (Task, Lease) {
    let task = task(&deployment("demo"), 1, capacity(1000, 1));
    assert_eq!(accept(queue, &task, None).await, ACCEPTED);
    let lease = take(runner).await;
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
    let refused = Outcome::Failed(Failure::new(Code::InsufficientCapacity, "full"));
    let end = Entries { results: vec![(0, refused.clone())], ..Entries::default() };
    lease.journal(&task, &end).await.unwrap();

    let journal = queue.journal(&task.deployment).await.unwrap();
    assert_eq!(journal.facts, Some(facts));
    assert_eq!(journal.steps, [(0, declares("a", 1)), (1, declares("b", 2))].into());
    let by = Some(lease.token().to_owned());
    assert_eq!(journal.results, [(0, Ended { by, outcome: refused })].into());
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

/// How a job ends that is an effect.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Succeeds,
    Fails,
    /// Its last attempt does, and would be followed by another.
    Exhausted,
    RunnerDies,
    CancelledBefore,
    CancelledWhile,
    /// What it is after fails before.
    InVain,
}

/// A script job that has begun an effect whose job ends in this way. The effect's number is 0.
async fn ended(queue: &Queue, way: Way, only_failed: bool, is_known: bool) -> (Task, Job) {
    let (task, script) = begun(queue).await;
    let of = |job: Job| Job { max_attempts: 1, ..job };
    let first = of(job("volume"));
    let work = Job {
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        ends: Some(Ends { call: 0, only_failed }),
        after: if way == Way::InVain { vec![first.id] } else { vec![] },
        ..of(job("volume"))
    };
    let mut jobs = vec![work.clone()];
    if way == Way::InVain {
        jobs.insert(0, first);
    }
    let steps = if is_known { vec![(0, declares("a", 1))] } else { vec![] };
    let entries = Entries { declared: steps.len(), steps, jobs, ..Entries::default() };
    script.journal(&task, &entries).await.unwrap();
    if way == Way::CancelledBefore {
        queue.cancel(work.id).await.unwrap();
        return (task, work);
    }
    let mut runner = crate::support::runner(queue, "b").await;
    let lease = take(&mut runner).await;
    let failure = Failure::new(Code::Internal, "it broke");
    match way {
        Way::Succeeds => lease.finish(&Outcome::Succeeded(json!({ "path": "/a" }))).await.unwrap(),
        Way::Fails => lease.finish(&Outcome::Failed(failure)).await.unwrap(),
        Way::Exhausted => {
            let after = std::time::Duration::ZERO;
            lease.retry(&failure, after, &[]).await.unwrap();
        }
        Way::RunnerDies => {
            queue.release_runner(runner.name()).await.unwrap();
        }
        Way::CancelledWhile => {
            queue.cancel(work.id).await.unwrap();
            lease.finish(&Outcome::Cancelled).await.unwrap();
        }
        Way::InVain => {
            let _upkeep = crate::support::maintain(queue);
            lease.finish(&Outcome::Failed(failure)).await.unwrap();
            crate::support::soon("it ends", queue.wait(work.id)).await.unwrap();
        }
        Way::CancelledBefore => unreachable!(),
    }
    // It goes on holding what it has.
    std::mem::forget(runner);
    (task, work)
}

#[tokio::test]
async fn however_an_effects_job_ends_its_journal_says_the_same() {
    use Way::*;
    for way in [Succeeds, Fails, Exhausted, RunnerDies, CancelledBefore, CancelledWhile, InVain] {
        let server = Server::start();
        let queue = server.queue().await;
        let (task, work) = ended(&queue, way, false, true).await;
        let record = queue.job(work.id).await.unwrap().unwrap();
        assert!(record.state.is_ended(), "{way:?}: {record:?}");
        let journal = queue.journal(&task.deployment).await.unwrap();
        let result = journal.results.get(&0).unwrap_or_else(|| panic!("{way:?}: none"));
        assert_eq!(Some(&result.outcome), record.outcome.as_ref(), "{way:?}");
        // Who is dead, or never was, has said nothing.
        let unsaid = matches!(way, RunnerDies | CancelledBefore | InVain);
        assert_eq!(result.by.is_none(), unsaid, "{way:?}: {result:?}");
    }
}

#[tokio::test]
async fn the_end_of_a_job_that_others_follow_is_no_result_unless_it_failed() {
    for way in [Way::Succeeds, Way::Fails, Way::RunnerDies] {
        let server = Server::start();
        let queue = server.queue().await;
        let (task, _) = ended(&queue, way, true, true).await;
        let journal = queue.journal(&task.deployment).await.unwrap();
        assert_eq!(journal.results.is_empty(), way == Way::Succeeds, "{way:?}");
    }
}

#[tokio::test]
async fn a_result_comes_too_late_for_a_journal_that_is_gone_or_of_another_version() {
    let server = Server::start();
    let queue = server.queue().await;
    // Its own version never wrote a journal.
    let (task, _) = ended(&queue, Way::Succeeds, false, false).await;
    let journal = queue.journal(&task.deployment).await.unwrap();
    assert_eq!(journal.results, [].into(), "there was no journal");

    let server = Server::start();
    let queue = server.queue().await;
    let mut runner = scripts(&queue, "a").await;
    let (mut task, lease) = begun_by(&mut runner, &queue).await;
    let late = Job {
        deployment: Some(task.deployment.clone()),
        version: Some(task.version),
        ends: Some(Ends { call: 0, only_failed: false }),
        ..job("volume")
    };
    let entries = |jobs| Entries {
        steps: vec![(0, declares("a", 1))],
        declared: 1,
        jobs,
        ..Entries::default()
    };
    lease.journal(&task, &entries(vec![late])).await.unwrap();
    task.phase = Phase::Failed;
    lease.finish_with(&Outcome::Cancelled, Some(&task), &[]).await.unwrap();
    let next = crate::support::task(&task.deployment, 2, Capacity::default());
    assert_eq!(accept(&queue, &next, Some((1, Phase::Failed))).await, ACCEPTED);
    let lease = take(&mut runner).await;
    lease.journal(&Task { phase: Phase::Running, ..next.clone() }, &entries(vec![])).await.unwrap();
    let mut volumes = crate::support::runner(&queue, "d").await;
    take(&mut volumes).await.finish(&Outcome::Succeeded(json!({}))).await.unwrap();
    let journal = queue.journal(&task.deployment).await.unwrap();
    assert_eq!((journal.steps.len(), journal.results.len()), (1, 0), "{journal:?}");
}
