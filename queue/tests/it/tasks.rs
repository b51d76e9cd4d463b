use rhizome_model::{Capacity, DeploymentId, Event, Job, JobState, Outcome, Phase, Task, Version};
use rhizome_queue::{
    Accept, Acceptance, Allow, CancelReason, Entries, Queue, QueueError, Runner, RunnerOptions,
};
use serde_json::json;

use crate::journal::{declares, volume};
use crate::support::{
    Server, capacity, deployment, event, job_of, message, new_id, options, soon, state, take, task,
};

const ALLOW: Allow = Allow::AsBefore;
pub const ACCEPTED: Acceptance = Acceptance::Accepted { superseded: None };

struct Ask<'a> {
    task: &'a Task,
    base: Option<(u64, Phase)>,
    nonce: &'a str,
    digest: &'a str,
    total: Capacity,
    allow: Allow,
}

async fn ask(queue: &Queue, ask: Ask<'_>) -> Acceptance {
    let (jobs, events): ([Job; 1], [Event; 1]) =
        ([job_of(ask.task)], [event(ask.task, "accepted")]);
    let request = Accept {
        task: ask.task,
        base: ask.base.map(|(v, p)| (Version(v), p)),
        nonce: ask.nonce,
        nonce_expires: 4_000_000_000,
        digest: ask.digest,
        total: ask.total,
        allow: ask.allow,
        jobs: &jobs,
        events: &events,
    };
    queue.accept(request).await.unwrap()
}

pub async fn accept(queue: &Queue, task: &Task, base: Option<(u64, Phase)>) -> Acceptance {
    let nonce = new_id().to_string();
    ask(
        queue,
        Ask { task, base, nonce: &nonce, digest: &nonce, total: capacity(8000, 8), allow: ALLOW },
    )
    .await
}

pub async fn accept_allowed(queue: &Queue, task: &Task, allow: Allow) -> Acceptance {
    let nonce = new_id().to_string();
    let total = capacity(8000, 8);
    ask(queue, Ask { task, base: None, nonce: &nonce, digest: &nonce, total, allow }).await
}

pub async fn accept_with(queue: &Queue, task: &Task, nonce: &str) -> Acceptance {
    let total = capacity(8000, 8);
    ask(queue, Ask { task, base: None, nonce, digest: nonce, total, allow: ALLOW }).await
}

pub async fn scripts(queue: &Queue, name: &str) -> Runner {
    scripts_with(queue, name, 4).await
}

async fn scripts_with(queue: &Queue, name: &str, slots: usize) -> Runner {
    let queues = vec!["script".into()];
    queue.runner(RunnerOptions { queues, ..options(name, slots) }).await.unwrap()
}

/// Brings an accepted task to its end.
async fn settle(queue: &Queue, runner: &mut Runner, id: &DeploymentId, phase: Phase) {
    let lease = take(runner).await;
    let mut task = queue.task(id).await.unwrap().unwrap();
    task.phase = phase;
    lease.finish_with(&Outcome::Succeeded(json!(null)), Some(&task), &[]).await.unwrap();
}

#[tokio::test]
async fn everything_is_accepted_in_one_step() {
    let server = Server::start();
    let queue = server.queue().await;
    let id = deployment("demo");
    let task = task(&id, 1, capacity(1000, 1));
    assert_eq!(accept(&queue, &task, None).await, ACCEPTED);
    assert_eq!(queue.task(&id).await.unwrap().unwrap(), task);
    assert_eq!(queue.tasks().await.unwrap(), std::slice::from_ref(&task));
    assert_eq!(queue.reserved().await.unwrap(), capacity(1000, 1));
    assert_eq!(state(&queue, task.job).await, JobState::Queued);
    let mut events = Box::pin(queue.follow(None));
    let (_, first) =
        soon("the event", futures_util::StreamExt::next(&mut events)).await.unwrap().unwrap();
    assert_eq!(message(&first), "accepted");
}

#[tokio::test]
async fn the_same_envelope_is_the_same_and_another_with_its_nonce_is_not() {
    let server = Server::start();
    let queue = server.queue().await;
    let task = task(&deployment("demo"), 1, capacity(1000, 1));
    let with = |digest| Ask {
        task: &task,
        base: None,
        nonce: "n1",
        digest,
        total: capacity(8000, 8),
        allow: ALLOW,
    };
    assert_eq!(ask(&queue, with("d1")).await, ACCEPTED);
    assert_eq!(ask(&queue, with("d1")).await, Acceptance::Same(task.clone()));
    assert_eq!(ask(&queue, with("d2")).await, Acceptance::Replayed);
    assert_eq!(queue.reserved().await.unwrap(), capacity(1000, 1));
    let other = crate::support::task(&deployment("other"), 1, Capacity::default());
    let again = Ask {
        task: &other,
        base: None,
        nonce: "n1",
        digest: "d1",
        total: capacity(8000, 8),
        allow: ALLOW,
    };
    assert_eq!(ask(&queue, again).await, Acceptance::Replayed);

    // What was replaced cannot be brought back by its old envelope.
    let mut runner = scripts(&queue, "a").await;
    settle(&queue, &mut runner, &task.deployment, Phase::Ready).await;
    let next = crate::support::task(&task.deployment, 2, capacity(1000, 1));
    assert_eq!(accept(&queue, &next, Some((1, Phase::Ready))).await, ACCEPTED);
    assert_eq!(ask(&queue, with("d1")).await, Acceptance::Replayed);
}

#[tokio::test]
async fn a_nonce_is_forgotten_when_it_expires() {
    let server = Server::start();
    let queue = server.queue().await;
    let task = task(&deployment("demo"), 1, Capacity::default());
    let nonce = "short-lived";
    assert_eq!(
        ask(
            &queue,
            Ask {
                task: &task,
                base: None,
                nonce,
                digest: "d",
                total: capacity(1, 1),
                allow: ALLOW
            }
        )
        .await,
        ACCEPTED
    );
    let mut expiry = redis::cmd("EXPIRETIME");
    expiry.arg(format!("{{n}}:nonce:1:{nonce}"));
    let expiry: i64 = expiry.query_async(&mut server.wire().await).await.unwrap();
    assert_eq!(expiry, 4_000_000_000);
}

#[tokio::test]
async fn old_versions_and_versions_under_way_are_refused() {
    let server = Server::start();
    let queue = server.queue().await;
    let id = deployment("demo");
    let mut runner = scripts(&queue, "a").await;
    let five = task(&id, 5, capacity(1000, 1));
    assert_eq!(accept(&queue, &five, None).await, ACCEPTED);
    let six = task(&id, 6, capacity(1000, 1));
    let base = Some((5, Phase::Accepted));
    assert_eq!(accept(&queue, &six, base).await, Acceptance::Conflict { phase: Phase::Accepted });
    settle(&queue, &mut runner, &id, Phase::Ready).await;

    let stale = Acceptance::Stale { current: Version(5) };
    for version in [1, 4, 5] {
        let old = task(&id, version, capacity(1000, 1));
        assert_eq!(accept(&queue, &old, Some((5, Phase::Ready))).await, stale);
    }
    // Made from what is no longer so.
    for base in [None, Some((4, Phase::Ready)), Some((5, Phase::Failed))] {
        let refused = accept(&queue, &six, base).await;
        assert_eq!(refused, Acceptance::Conflict { phase: Phase::Ready });
    }
    assert_eq!(queue.task(&id).await.unwrap().unwrap().version, Version(5));
    assert_eq!(accept(&queue, &six, Some((5, Phase::Ready))).await, ACCEPTED);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_changes_nothing() {
    let server = Server::start();
    let queue = server.queue().await;
    assert_eq!(accept(&queue, &task(&deployment("a"), 1, capacity(6000, 2)), None).await, ACCEPTED);
    let second = task(&deployment("b"), 1, capacity(3000, 2));
    match accept(&queue, &second, None).await {
        Acceptance::Shortfall(short) => {
            assert_eq!(short.asked, capacity(3000, 2));
            assert_eq!(short.free, capacity(2000, 6));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(queue.task(&second.deployment).await.unwrap(), None);
    assert_eq!(queue.job(second.job).await.unwrap(), None);
    assert_eq!(queue.reserved().await.unwrap(), capacity(6000, 2));
    let endless = Capacity { memory: rhizome_model::Bytes(u64::MAX), ..capacity(1, 0) };
    let third = task(&deployment("c"), 1, endless);
    assert!(matches!(accept(&queue, &third, None).await, Acceptance::Shortfall(_)));
}

#[tokio::test]
async fn nothing_is_promised_twice() {
    let server = Server::start();
    let queue = server.queue().await;
    let asks: Vec<_> = (0..40)
        .map(|n| {
            let queue = queue.clone();
            tokio::spawn(async move {
                let task = task(&deployment(&format!("d{n}")), 1, capacity(1000, 1));
                accept(&queue, &task, None).await
            })
        })
        .collect();
    let mut accepted = 0;
    for ask in asks {
        match ask.await.unwrap() {
            Acceptance::Accepted { .. } => accepted += 1,
            Acceptance::Shortfall(short) => assert_eq!(short.free, Capacity::default()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(accepted, 8);
    assert_eq!(queue.reserved().await.unwrap(), capacity(8000, 8));
    let sum = Capacity::total(queue.tasks().await.unwrap().iter().map(|t| t.reserved));
    assert_eq!(sum, capacity(8000, 8));
}

fn deleting(current: &Task) -> Task {
    Task { phase: Phase::Deleting, job: new_id(), ..current.clone() }
}

#[tokio::test]
async fn a_running_version_is_deleted() {
    let server = Server::start();
    let queue = server.queue().await;
    let id = deployment("demo");
    let mut runner = scripts(&queue, "a").await;
    let task = task(&id, 1, capacity(1000, 1));
    accept(&queue, &task, None).await;
    let script = take(&mut runner).await;
    let mut running = Task { phase: Phase::Running, ..task.clone() };
    script.update(&running, &[]).await.unwrap();
    let name = "data".parse().unwrap();
    script.set_status(&id, &name, Some(&json!({ "size": 1 })), &[]).await.unwrap();

    let delete = deleting(&running);
    let base = Some((1, Phase::Running));
    let superseded = Acceptance::Accepted { superseded: Some(task.job) };
    assert_eq!(accept(&queue, &delete, base).await, superseded);
    soon("the cancellation", script.cancelled().cancelled_owned()).await;
    assert_eq!(script.cancel_reason(), Some(CancelReason::Requested));
    running.phase = Phase::Ready;
    let late = script.update(&running, &[]).await;
    assert!(matches!(late, Err(QueueError::Fenced)), "{late:?}");
    let late = script.finish_with(&Outcome::Succeeded(json!(1)), Some(&running), &[]).await;
    assert!(matches!(late, Err(QueueError::Fenced)), "{late:?}");
    drop(script);
    assert_eq!(soon("its end", queue.wait(task.job)).await.unwrap(), Outcome::Cancelled);
    assert_eq!(queue.task(&id).await.unwrap().unwrap().phase, Phase::Deleting);
    assert_eq!(queue.reserved().await.unwrap(), capacity(1000, 1));
    let newer = crate::support::task(&id, 2, capacity(1, 1));
    let refused = accept(&queue, &newer, Some((1, Phase::Deleting))).await;
    assert_eq!(refused, Acceptance::Conflict { phase: Phase::Deleting });

    settle(&queue, &mut runner, &id, Phase::Deleted).await;
    assert_eq!(queue.reserved().await.unwrap(), Capacity::default());
    assert!(queue.statuses(&id).await.unwrap().is_empty());
    assert!(queue.tasks().await.unwrap().is_empty());
    let tombstone = queue.task(&id).await.unwrap().unwrap();
    assert_eq!((tombstone.phase, tombstone.version), (Phase::Deleted, Version(1)));
    assert!(tombstone.envelope.is_empty());
    queue.set_status(&id, &name, Some(&json!(1))).await.unwrap();
    assert!(queue.statuses(&id).await.unwrap().is_empty(), "a status outlives its task");

    let same = crate::support::task(&id, 1, capacity(1, 1));
    let base = Some((1, Phase::Deleted));
    assert_eq!(accept(&queue, &same, base).await, Acceptance::Stale { current: Version(1) });
    assert_eq!(accept(&queue, &newer, base).await, ACCEPTED);
}

#[tokio::test]
async fn a_waiting_version_is_deleted_before_it_starts() {
    let server = Server::start();
    let queue = server.queue().await;
    let id = deployment("demo");
    let task = task(&id, 3, capacity(1000, 1));
    accept(&queue, &task, None).await;
    let delete = deleting(&task);
    let superseded = Acceptance::Accepted { superseded: Some(task.job) };
    assert_eq!(accept(&queue, &delete, Some((3, Phase::Accepted))).await, superseded);
    assert_eq!(state(&queue, task.job).await, JobState::Cancelled);
    let mut runner = scripts(&queue, "a").await;
    assert_eq!(take(&mut runner).await.job.id, delete.job);
}

#[tokio::test]
async fn a_delete_does_not_forget_what_was_declared_meanwhile() {
    let server = Server::start();
    let queue = server.queue().await;
    let id = deployment("demo");
    let mut runner = scripts(&queue, "a").await;
    let mut task = task(&id, 1, capacity(1000, 1));
    accept(&queue, &task, None).await;
    let script = take(&mut runner).await;
    task.phase = Phase::Running;
    script.update(&task, &[]).await.unwrap();
    let delete = deleting(&task);
    let begun =
        Entries { steps: vec![(0, declares("data", 1))], declared: 1, ..Entries::default() };
    script.journal(&task, &begun).await.unwrap();
    task.declared.push(volume("data", 1));
    let base = Some((1, Phase::Running));
    let refused = Acceptance::Conflict { phase: Phase::Running };
    assert_eq!(accept(&queue, &delete, base).await, refused);
    assert!(matches!(
        accept(&queue, &deleting(&task), base).await,
        Acceptance::Accepted { superseded: Some(_) }
    ));
}

#[tokio::test]
async fn reservations_grow_only_into_what_is_free() {
    let server = Server::start();
    let queue = server.queue().await;
    let mut runner = scripts(&queue, "a").await;
    let mut task = task(&deployment("a"), 1, capacity(1000, 1));
    accept(&queue, &task, None).await;
    let lease = take(&mut runner).await;
    let other = crate::support::task(&deployment("b"), 1, capacity(4000, 4));
    accept(&queue, &other, None).await;

    task.reserved = capacity(4000, 4);
    lease.update(&task, &[]).await.unwrap();
    assert_eq!(queue.reserved().await.unwrap(), capacity(8000, 8));
    let stored = queue.task(&task.deployment).await.unwrap();
    let too_much = Task { reserved: capacity(4001, 4), ..task.clone() };
    match lease.update(&too_much, &[event(&task, "never")]).await {
        Err(QueueError::Shortfall(short)) => assert_eq!(short.free, capacity(4000, 4)),
        other => panic!("{other:?}"),
    }
    assert_eq!(queue.task(&task.deployment).await.unwrap(), stored);
    // What is too much cannot be brought in at the end either, and then the job has not ended.
    let end = Outcome::Succeeded(json!(null));
    let refused = lease.finish_with(&end, Some(&too_much), &[]).await;
    assert!(matches!(refused, Err(QueueError::Shortfall(_))), "{refused:?}");
    assert_eq!(state(&queue, task.job).await, JobState::Running);
    task.reserved = capacity(500, 1);
    lease.finish_with(&end, Some(&task), &[]).await.unwrap();
    assert_eq!(queue.reserved().await.unwrap(), capacity(4500, 5));
}

#[tokio::test]
async fn job_task_and_events_end_together_or_not_at_all() {
    let server = Server::start();
    let queue = server.queue().await;
    // Its one slot is taken: it cannot claim the job again, though it lives.
    let mut dead = scripts_with(&queue, "dead", 1).await;
    let mut task = task(&deployment("a"), 1, capacity(1000, 1));
    accept(&queue, &task, None).await;
    let stale = take(&mut dead).await;
    queue.release_runner("dead").await.unwrap();
    let before = queue.last_event_id().await.unwrap();
    let accepted = queue.task(&task.deployment).await.unwrap();
    task.phase = Phase::Ready;
    task.reserved = capacity(1, 1);
    let end = Outcome::Succeeded(json!(null));
    let refused = stale.finish_with(&end, Some(&task), &[event(&task, "ready")]).await;
    assert!(matches!(refused, Err(QueueError::Fenced)));
    assert_eq!(queue.task(&task.deployment).await.unwrap(), accepted);
    assert_eq!(queue.reserved().await.unwrap(), capacity(1000, 1));
    assert_eq!(queue.last_event_id().await.unwrap(), before);

    let mut alive = scripts(&queue, "alive").await;
    let lease = take(&mut alive).await;
    lease.finish_with(&end, Some(&task), &[event(&task, "ready")]).await.unwrap();
    lease.finish_with(&end, Some(&task), &[event(&task, "ready")]).await.unwrap();
    assert_eq!(queue.task(&task.deployment).await.unwrap(), Some(task));
    assert_eq!(queue.reserved().await.unwrap(), capacity(1, 1));
    let mut events = Box::pin(queue.follow(Some(before)));
    let next = futures_util::StreamExt::next(&mut events);
    let (id, _) = soon("the event", next).await.unwrap().unwrap();
    assert_eq!(id, queue.last_event_id().await.unwrap(), "it was said twice");
}

#[tokio::test]
async fn statuses_come_and_go() {
    let server = Server::start();
    let queue = server.queue().await;
    let task = task(&deployment("a"), 1, Capacity::default());
    accept(&queue, &task, None).await;
    let (one, two) = ("one".parse().unwrap(), "two".parse().unwrap());
    queue.set_status(&task.deployment, &one, Some(&json!({ "a": 1 }))).await.unwrap();
    queue.set_status(&task.deployment, &two, Some(&json!([]))).await.unwrap();
    let statuses = queue.statuses(&task.deployment).await.unwrap();
    assert_eq!((&statuses[&one], &statuses[&two]), (&json!({ "a": 1 }), &json!([])));
    queue.set_status(&task.deployment, &one, None).await.unwrap();
    let statuses = queue.statuses(&task.deployment).await.unwrap();
    assert_eq!(statuses.into_keys().collect::<Vec<_>>(), [two]);
}
