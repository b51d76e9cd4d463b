//! Over random histories: what is reserved is the sum of what the tasks say, and never more than
//! there is; what is refused changed nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rhizome_model::{Capacity, Outcome, Phase, Task, Version};
use rhizome_queue::{
    Accept, Acceptance, Allow, Durability, Lease, Queue, QueueError, Runner, RunnerOptions,
};
use serde_json::json;

use crate::support::{Server, capacity, deployment, job_of, new_id, options, take, task};

const TOTAL: (u32, u64) = (4000, 4);

#[derive(Debug, Clone)]
enum Step {
    Accept(u8, u32),
    Update(u8, u32),
    End(u8, u32, Phase),
    Delete(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let (who, much) = (0..4u8, 0..3000u32);
    let phase = prop_oneof![Just(Phase::Ready), Just(Phase::Failed), Just(Phase::Deleted)];
    prop_oneof![
        4 => (who.clone(), much.clone()).prop_map(|(w, m)| Step::Accept(w, m)),
        2 => (who.clone(), much.clone()).prop_map(|(w, m)| Step::Update(w, m)),
        3 => (who.clone(), much, phase).prop_map(|(w, m, p)| Step::End(w, m, p)),
        1 => who.prop_map(Step::Delete),
    ]
}

struct History {
    queue: Queue,
    runner: Runner,
    working: BTreeMap<u8, (Lease, Task)>,
}

impl History {
    async fn apply(&mut self, step: &Step) {
        match *step {
            Step::Accept(who, much) => {
                let id = deployment(&format!("d{who}"));
                let current = self.queue.task(&id).await.unwrap();
                let version = current.as_ref().map_or(1, |t| t.version.0 + 1);
                let task = task(&id, version, capacity(much, 1));
                self.accept(who, task, current).await;
            }
            Step::Delete(who) => {
                let id = deployment(&format!("d{who}"));
                let current = self.queue.task(&id).await.unwrap();
                let Some(held) = current.clone().filter(|t| t.phase != Phase::Deleted) else {
                    return;
                };
                let task = Task { phase: Phase::Deleting, job: new_id(), ..held };
                // The job that worked on it until now is dropped with its lease.
                self.accept(who, task, current).await;
            }
            Step::Update(who, much) => {
                let Some((lease, task)) = self.working.get_mut(&who) else { return };
                let next = Task { reserved: capacity(much, 1), ..task.clone() };
                match lease.update(&next, &[]).await {
                    Ok(()) => *task = next,
                    Err(QueueError::Shortfall(short)) => assert!(short.asked.cpu > short.free.cpu),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::End(who, much, phase) => {
                let Some((lease, task)) = self.working.remove(&who) else { return };
                let reserved = capacity(much, 1);
                let next = Task { phase, reserved, ..task.clone() };
                let end = Outcome::Succeeded(json!(null));
                match lease.finish_with(&end, Some(&next), &[]).await {
                    Ok(()) => {}
                    Err(QueueError::Shortfall(_)) => {
                        self.working.insert(who, (lease, task));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    async fn accept(&mut self, who: u8, task: Task, current: Option<Task>) {
        let nonce = new_id().to_string();
        let jobs = [job_of(&task)];
        let request = Accept {
            task: &task,
            base: current.as_ref().map(|t| (t.version, t.phase)),
            nonce: &nonce,
            nonce_expires: 4_000_000_000,
            digest: &nonce,
            total: capacity(TOTAL.0, TOTAL.1),
            allow: Allow::AsBefore,
            jobs: &jobs,
            events: &[],
        };
        match self.queue.accept(request).await.unwrap() {
            Acceptance::Accepted { superseded } => {
                let before = self.working.remove(&who).map(|(lease, _)| lease);
                assert_eq!(superseded, before.as_ref().map(|l| l.job.id));
                drop(before);
                let lease = take(&mut self.runner).await;
                assert_eq!(lease.job.id, task.job);
                self.working.insert(who, (lease, task));
            }
            Acceptance::Shortfall(_) | Acceptance::Conflict { .. } => {
                assert_eq!(self.queue.task(&task.deployment).await.unwrap(), current);
            }
            other @ (Acceptance::Same(_)
            | Acceptance::Replayed
            | Acceptance::Stale { .. }
            | Acceptance::Beyond(_)) => {
                panic!("{other:?}")
            }
        }
    }

    async fn check(&self) {
        let reserved = self.queue.reserved().await.unwrap();
        let sum = Capacity::total(self.queue.tasks().await.unwrap().iter().map(|t| t.reserved));
        assert_eq!(reserved, sum);
        assert!(capacity(TOTAL.0, TOTAL.1).admit(reserved).is_ok(), "oversubscribed: {reserved}");
        for (_, task) in self.working.values() {
            let stored = self.queue.task(&task.deployment).await.unwrap().unwrap();
            assert_eq!((stored.version, stored.reserved), (task.version, task.reserved));
            assert!(stored.version >= Version(1));
        }
    }
}

#[test]
fn the_sum_is_right_and_never_too_large() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = Server::start();
    let queue = runtime.block_on(server.queue_with(Durability::None));
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&proptest::collection::vec(step(), 1..40), |steps| {
            runtime.block_on(async {
                let mut wire = server.wire().await;
                redis::cmd("FLUSHALL").query_async::<()>(&mut wire).await.unwrap();
                let options = RunnerOptions {
                    queues: vec!["script".into()],
                    ..options(&new_id().to_string(), 16)
                };
                let runner = queue.runner(options).await.unwrap();
                let working = BTreeMap::new();
                let mut history = History { queue: queue.clone(), runner, working };
                for step in &steps {
                    history.apply(step).await;
                    history.check().await;
                }
                history.working.clear();
                history.runner.close().await;
            });
            Ok(())
        })
        .unwrap();
}
