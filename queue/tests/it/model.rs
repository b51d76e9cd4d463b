//! What redis-server says of a job is what the model's step function says, over random histories.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rhizome_model::{Code, Failure, Job, JobEvent, JobId, JobState, Outcome};
use rhizome_queue::{Durability, Lease, Queue, QueueError, Retried, Runner};
use serde_json::json;

use crate::support::{Server, job, options, soon, state, take};

#[derive(Debug, Clone, Copy)]
enum Step {
    Claim,
    Succeed,
    Fail,
    Retry,
    Release,
    Die,
    Due,
    Cancel,
    /// The deadline is over by the time that it is due.
    Late,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Claim),
        1 => Just(Step::Succeed),
        1 => Just(Step::Fail),
        2 => Just(Step::Retry),
        2 => Just(Step::Release),
        2 => Just(Step::Die),
        3 => Just(Step::Due),
        1 => Just(Step::Cancel),
        1 => Just(Step::Late),
    ]
}

/// The model: a state, attempts that count, and what an end by the runner would be.
struct Model {
    state: JobState,
    attempts: u32,
    max: u32,
    cancel_asked: bool,
    late: bool,
    born_late: bool,
}

impl Model {
    /// The event that a step is, if it is one in this state.
    fn event(&self, step: Step) -> JobEvent {
        match step {
            Step::Claim if self.late && self.state == JobState::Queued => JobEvent::Expire,
            Step::Claim => JobEvent::Claim,
            Step::Succeed => JobEvent::Succeed,
            Step::Fail => JobEvent::Fail,
            Step::Retry | Step::Release | Step::Die if self.cancel_asked => JobEvent::Cancel,
            Step::Retry if self.attempts >= self.max => JobEvent::Fail,
            Step::Retry => JobEvent::Retry,
            Step::Die if self.attempts >= self.max => JobEvent::Quarantine,
            Step::Release | Step::Die => JobEvent::Release,
            // The upkeep sees deadlines that were over from the beginning.
            Step::Due if self.born_late => JobEvent::Expire,
            Step::Due => JobEvent::Due,
            // Nothing happens to it, but something will.
            Step::Cancel | Step::Late => JobEvent::Cancel,
        }
    }

    fn apply(&mut self, step: Step) {
        if matches!(step, Step::Cancel) && self.state == JobState::Running {
            self.cancel_asked = true;
            return;
        }
        if matches!(step, Step::Late) {
            self.late |= self.state == JobState::Delayed;
            return;
        }
        if let Ok(next) = self.state.step(self.event(step)) {
            let given_back = matches!(step, Step::Release) && next == JobState::Queued;
            self.attempts += u32::from(next == JobState::Running);
            self.attempts -= u32::from(given_back);
            self.state = next;
        }
    }
}

struct Real {
    queue: Queue,
    /// Lives from one claim to the next, so that it claims only when the history says so.
    runner: Option<Runner>,
    wire: redis::aio::MultiplexedConnection,
    lease: Option<Lease>,
}

impl Real {
    async fn apply(&mut self, id: JobId, step: Step, can_claim: bool, late: bool) {
        match step {
            Step::Claim if can_claim => self.claim(id, late).await,
            Step::Claim => {}
            Step::Succeed => self.end(Outcome::Succeeded(json!(1))).await,
            Step::Fail => self.end(Outcome::Failed(failure())).await,
            Step::Retry => {
                if let Some(lease) = self.lease.take() {
                    let pause = Duration::from_secs(3600);
                    let retried = lease.retry(&failure(), pause, &[]).await.unwrap();
                    let ended = state(&self.queue, id).await.is_ended();
                    assert_eq!(retried == Retried::Exhausted, ended);
                }
            }
            Step::Release => {
                if let Some(lease) = self.lease.take() {
                    lease.release().await.unwrap();
                }
            }
            Step::Die => {
                if let Some(lease) = self.lease.take() {
                    self.queue.release_runner(&id.to_string()).await.unwrap();
                    let late = lease.finish(&Outcome::Succeeded(json!("late"))).await;
                    assert!(matches!(late, Err(QueueError::Fenced)), "{late:?}");
                }
            }
            Step::Due => self.make_due(id).await,
            Step::Cancel => {
                self.queue.cancel(id).await.unwrap();
            }
            Step::Late => self.make_late(id).await,
        }
    }

    async fn claim(&mut self, id: JobId, late: bool) {
        if let Some(old) = self.runner.take() {
            old.close().await;
        }
        let mut runner = self.queue.runner(options(&id.to_string(), 1)).await.unwrap();
        if late {
            let end = soon("its end", self.queue.wait(id)).await.unwrap();
            assert!(matches!(end, Outcome::Failed(f) if f.code == Code::Expired));
        } else {
            self.lease = Some(take(&mut runner).await);
        }
        runner.drain();
        self.runner = Some(runner);
    }

    async fn end(&mut self, outcome: Outcome) {
        if let Some(lease) = self.lease.take() {
            lease.finish(&outcome).await.unwrap();
        }
    }

    /// The deadline of a delayed job is moved into the past.
    async fn make_late(&mut self, id: JobId) {
        let record = self.queue.job(id).await.unwrap().unwrap();
        if record.state != JobState::Delayed {
            return;
        }
        let more = format!("{{n}}:more:{id}");
        let mut get = redis::cmd("HGET");
        let value: Vec<u8> = get.arg(&more).arg("j").query_async(&mut self.wire).await.unwrap();
        let field = b"\"expires_at\":";
        let at = value.windows(field.len()).position(|w| w == field).unwrap() + field.len();
        let end = at + value[at..].iter().position(|b| !b.is_ascii_digit()).unwrap();
        let late = [&value[..at], b"1", &value[end..]].concat();
        let mut set = redis::cmd("HSET");
        set.arg(&more).arg("j").arg(late);
        set.query_async::<()>(&mut self.wire).await.unwrap();
    }

    /// The hour of pause is over.
    async fn make_due(&mut self, id: JobId) {
        let mut add = redis::cmd("ZADD");
        add.arg("{n}:delayed").arg("XX").arg(1).arg(format!("{id} volume:1:2"));
        add.query_async::<()>(&mut self.wire).await.unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let (queue, token) = (self.queue.clone(), stop.clone());
        let upkeep = tokio::spawn(async move { queue.maintain(token).await });
        crate::support::until("nothing is due", async || {
            let mut score = redis::cmd("ZCOUNT");
            score.arg("{n}:delayed").arg(1).arg(1);
            score.query_async::<u64>(&mut self.wire).await.unwrap() == 0
        })
        .await;
        stop.cancel();
        soon("the end of the upkeep", upkeep).await.unwrap();
    }
}

fn failure() -> Failure {
    Failure::new(Code::ToolFailed, "no")
}

async fn compare(server: &Server, queue: &Queue, max: u32, late: bool, steps: &[Step]) {
    let deadline = if late { 1 } else { i64::MAX >> 10 };
    let job = Job { max_attempts: max, expires_at: Some(deadline), ..job("volume") };
    queue.submit(std::slice::from_ref(&job)).await.unwrap();
    let mut model = Model {
        state: JobState::Queued,
        attempts: 0,
        max,
        cancel_asked: false,
        late,
        born_late: late,
    };
    let mut real =
        Real { queue: queue.clone(), runner: None, wire: server.wire().await, lease: None };
    for step in steps {
        let claims = matches!(step, Step::Claim) && model.state == JobState::Queued;
        real.apply(job.id, *step, claims, model.late).await;
        model.apply(*step);
        let record = queue.job(job.id).await.unwrap().unwrap();
        assert_eq!(
            (record.state, record.attempts),
            (model.state, model.attempts),
            "after {step:?}"
        );
    }
    queue.cancel(job.id).await.unwrap();
    drop(real);
    queue.release_runner(&job.id.to_string()).await.unwrap();
    assert!(state(queue, job.id).await.is_ended());
}

#[test]
fn redis_and_the_model_agree() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = Server::start();
    let queue = runtime.block_on(server.queue_with(Durability::None));
    let mut runner =
        TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let lates = prop_oneof![5 => Just(false), 1 => Just(true)];
    let histories = (1..4u32, lates, proptest::collection::vec(step(), 1..14));
    runner
        .run(&histories, |(max, late, steps)| {
            runtime.block_on(compare(&server, &queue, max, late, &steps));
            Ok(())
        })
        .unwrap();
    let stats = runtime.block_on(queue.stats()).unwrap().remove(0);
    assert_eq!((stats.ready, stats.running, stats.delayed), (0, 0, 0));
    assert_eq!(stats.ended.values().sum::<u64>(), 300);
}
