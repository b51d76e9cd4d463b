//! Random histories of several jobs and runners: what redis-server says is what a small model says,
//! whose states change by the model crate's step function; and what it holds fits together.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rhizome_model::api::{AccountLimits, PoolMode};
use rhizome_model::{AccountId, Code, Failure, Job, JobEvent, JobState, Outcome};
use rhizome_queue::{Durability, Lease, Queue, QueueError, Runner};
use serde_json::json;

use crate::support::{Server, job, maintain, options, take, until};

const HISTORIES: u32 = 120;
const RUNNERS: usize = 2;
const QUEUE: &str = "volume";
/// No history lasts as long.
const LATER: Duration = Duration::from_secs(3600);

/// What a job has beside the usual.
#[derive(Debug, Clone)]
struct Shape {
    /// Which of those before it it is after.
    after: Vec<bool>,
    in_order: bool,
    account: u64,
    max_attempts: u32,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Submit,
    Claim(usize),
    Succeed(usize),
    Fail(usize),
    RetryLater(usize),
    RetryNow(usize),
    Release(usize),
    Die(usize),
    Cancel(usize),
    Pause,
    Resume,
}

fn shape() -> impl Strategy<Value = Shape> {
    let after = proptest::collection::vec(proptest::bool::weighted(0.25), 5);
    (after, proptest::bool::weighted(0.4), 1..3u64, 1..4u32).prop_map(
        |(after, in_order, account, max_attempts)| Shape { after, in_order, account, max_attempts },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let runner = 0..RUNNERS;
    prop_oneof![
        5 => Just(Step::Submit),
        8 => runner.clone().prop_map(Step::Claim),
        3 => runner.clone().prop_map(Step::Succeed),
        1 => runner.clone().prop_map(Step::Fail),
        1 => runner.clone().prop_map(Step::RetryLater),
        1 => runner.clone().prop_map(Step::RetryNow),
        2 => runner.clone().prop_map(Step::Release),
        2 => runner.prop_map(Step::Die),
        1 => (0..5usize).prop_map(Step::Cancel),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
    ]
}

/// What the model knows of a job.
struct Known {
    job: Job,
    state: JobState,
    attempts: u32,
    cancel_asked: bool,
    waits_for: BTreeSet<usize>,
    in_line: bool,
}

struct Model {
    jobs: Vec<Known>,
    paused: bool,
    /// Of account 1, one job at a time.
    limited: bool,
}

impl Model {
    fn submit(&mut self, job: Job, after: &[usize]) {
        let ended = |at: &&usize| self.jobs[**at].state.is_ended();
        let in_vain =
            after.iter().filter(ended).any(|at| self.jobs[*at].state != JobState::Succeeded);
        let waits_for: BTreeSet<_> = after.iter().filter(|at| !ended(at)).copied().collect();
        let in_line = job.order.is_some()
            && self.jobs.iter().any(|other| other.job.order.is_some() && !other.state.is_ended());
        let waits = in_vain || in_line || !waits_for.is_empty();
        let state = if waits { JobState::Waiting } else { JobState::Queued };
        self.jobs.push(Known { job, state, attempts: 0, cancel_asked: false, waits_for, in_line });
        if in_vain {
            self.happens(self.jobs.len() - 1, JobEvent::Fail);
        }
    }

    /// Jobs that a free runner may be given.
    fn may_start(&self) -> BTreeSet<usize> {
        let limited = |known: &Known| self.limited && known.job.account == AccountId(1);
        let runs = |known: &Known| known.state == JobState::Running;
        let full = self.jobs.iter().any(|known| limited(known) && runs(known));
        let may = |known: &Known| known.state == JobState::Queued && !(full && limited(known));
        let all = self.jobs.iter().enumerate().filter(|(_, known)| !self.paused && may(known));
        all.map(|(at, _)| at).collect()
    }

    fn happens(&mut self, at: usize, event: JobEvent) {
        let known = &mut self.jobs[at];
        known.state = known.state.step(event).unwrap();
        if known.state.is_ended() {
            self.go_on_after(at);
        }
    }

    /// Those who waited for it, or for its place.
    fn go_on_after(&mut self, ended: usize) {
        let (state, in_order) = (self.jobs[ended].state, self.jobs[ended].job.order.is_some());
        let first = self.jobs.iter().position(|k| k.job.order.is_some() && !k.state.is_ended());
        if let Some(first) = first.filter(|_| in_order) {
            self.jobs[first].in_line = false;
            self.go_on(first);
        }
        for at in 0..self.jobs.len() {
            let known = &mut self.jobs[at];
            if known.state == JobState::Waiting && known.waits_for.remove(&ended) {
                match state {
                    JobState::Succeeded => self.go_on(at),
                    _ => self.happens(at, JobEvent::Fail),
                }
            }
        }
    }

    fn go_on(&mut self, at: usize) {
        let known = &self.jobs[at];
        if known.state == JobState::Waiting && !known.in_line && known.waits_for.is_empty() {
            self.happens(at, JobEvent::Ready);
        }
    }

    /// What an end of an attempt that its holder says leads to.
    fn ends(&mut self, at: usize, step: Step) {
        let known = &mut self.jobs[at];
        let last = known.attempts >= known.job.max_attempts;
        let released = matches!(step, Step::Release(_));
        let event = match step {
            Step::Succeed(_) => JobEvent::Succeed,
            Step::Fail(_) => JobEvent::Fail,
            _ if known.cancel_asked => JobEvent::Cancel,
            Step::RetryLater(_) | Step::RetryNow(_) if last => JobEvent::Fail,
            Step::RetryLater(_) | Step::RetryNow(_) => JobEvent::Retry,
            Step::Die(_) if last => JobEvent::Quarantine,
            _ => JobEvent::Release,
        };
        known.attempts -= u32::from(released && event == JobEvent::Release);
        self.happens(at, event);
        if matches!(step, Step::RetryNow(_)) && event == JobEvent::Retry {
            self.happens(at, JobEvent::Due);
        }
    }

    fn cancel(&mut self, at: usize) {
        match self.jobs[at].state {
            JobState::Running => self.jobs[at].cancel_asked = true,
            state if !state.is_ended() => self.happens(at, JobEvent::Cancel),
            _ => {}
        }
    }
}

/// A runner that takes one job and then no more, and which of the jobs it has.
struct Seat {
    name: String,
    runner: Runner,
    lease: Lease,
    job: usize,
}

struct Bench<'a> {
    queue: &'a Queue,
    model: Model,
    shapes: &'a [Shape],
    seats: [Option<Seat>; RUNNERS],
    claims: usize,
}

impl Bench<'_> {
    async fn apply(&mut self, step: Step) {
        match step {
            Step::Submit => self.submit().await,
            Step::Claim(at) => self.claim(at).await,
            Step::Cancel(at) if at < self.model.jobs.len() => {
                self.queue.cancel(self.model.jobs[at].job.id).await.unwrap();
                self.model.cancel(at);
            }
            Step::Cancel(_) => {}
            Step::Pause | Step::Resume => {
                self.model.paused = matches!(step, Step::Pause);
                let mode = if self.model.paused { PoolMode::Paused } else { PoolMode::Running };
                self.queue.set_mode(QUEUE, mode).await.unwrap();
            }
            Step::Succeed(at)
            | Step::Fail(at)
            | Step::RetryLater(at)
            | Step::RetryNow(at)
            | Step::Release(at)
            | Step::Die(at) => {
                let Some(seat) = self.seats[at].take() else { return };
                end(self.queue, &seat, step).await;
                self.model.ends(seat.job, step);
                drop(seat.lease);
                seat.runner.close().await;
            }
        }
    }

    async fn submit(&mut self) {
        let Some(shape) = self.shapes.get(self.model.jobs.len()) else { return };
        let before = 0..self.model.jobs.len();
        let after: Vec<usize> = before.filter(|at| shape.after[*at]).collect();
        let job = Job {
            account: AccountId(shape.account),
            order: shape.in_order.then(|| "line".into()),
            after: after.iter().map(|at| self.model.jobs[*at].job.id).collect(),
            max_attempts: shape.max_attempts,
            ..job(QUEUE)
        };
        self.queue.submit(std::slice::from_ref(&job)).await.unwrap();
        self.model.submit(job, &after);
    }

    async fn claim(&mut self, at: usize) {
        let may_start = self.model.may_start();
        if self.seats[at].is_some() || may_start.is_empty() {
            return;
        }
        self.claims += 1;
        let name = format!("r{at}-{}", self.claims);
        let mut runner = self.queue.runner(options(&name, 1)).await.unwrap();
        let lease = take(&mut runner).await;
        runner.drain();
        let job = self.model.jobs.iter().position(|known| known.job.id == lease.job.id).unwrap();
        assert!(may_start.contains(&job), "job {job} started, and only {may_start:?} may");
        self.model.happens(job, JobEvent::Claim);
        self.model.jobs[job].attempts += 1;
        assert_eq!(lease.attempt, self.model.jobs[job].attempts);
        self.seats[at] = Some(Seat { name, runner, lease, job });
    }

    /// Redis says what the model says, as soon as the upkeep has been there.
    async fn agrees(&self, step: Step) {
        for (at, known) in self.model.jobs.iter().enumerate() {
            let expected = (known.state, known.attempts);
            let mut is = (JobState::Waiting, u32::MAX);
            for _ in 0..400 {
                let record = self.queue.job(known.job.id).await.unwrap().unwrap();
                is = (record.state, record.attempts);
                if is == expected {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(is, expected, "job {at} after {step:?}");
        }
        let audit = self.queue.audit().await.unwrap();
        assert_eq!(audit.faults, [""; 0], "after {step:?}");
    }

    /// All ends, and then nothing is left.
    async fn wind_up(mut self) {
        for at in 0..RUNNERS {
            self.apply(Step::Succeed(at)).await;
            self.agrees(Step::Succeed(at)).await;
        }
        self.apply(Step::Resume).await;
        for at in 0..self.model.jobs.len() {
            self.apply(Step::Cancel(at)).await;
            self.agrees(Step::Cancel(at)).await;
        }
        let idle = self.queue.runner(options("idle", 1)).await.unwrap();
        until("no turn is left", async || self.queue.audit().await.unwrap().idle_turns.is_empty())
            .await;
        idle.close().await;
        until("nothing is left", async || self.queue.audit().await.unwrap().remains.is_empty())
            .await;
    }
}

async fn end(queue: &Queue, seat: &Seat, step: Step) {
    let failure = Failure::new(Code::ToolFailed, "no");
    let lease = &seat.lease;
    match step {
        Step::Succeed(_) => lease.finish(&Outcome::Succeeded(json!(1))).await.unwrap(),
        Step::Fail(_) => lease.finish(&Outcome::Failed(failure)).await.unwrap(),
        Step::RetryLater(_) => _ = lease.retry(&failure, LATER, &[]).await.unwrap(),
        Step::RetryNow(_) => _ = lease.retry(&failure, Duration::ZERO, &[]).await.unwrap(),
        Step::Release(_) => lease.release().await.unwrap(),
        _ => {
            assert_eq!(queue.release_runner(&seat.name).await.unwrap(), 1);
            let late = lease.finish(&Outcome::Succeeded(json!("late"))).await;
            assert!(matches!(late, Err(QueueError::Fenced)), "{late:?}");
        }
    }
}

async fn compare(queue: &Queue, limited: bool, shapes: &[Shape], steps: &[Step]) {
    let concurrency = limited.then_some(1);
    let limits = AccountLimits { concurrency, ..AccountLimits::default() };
    queue.set_limits(Some(AccountId(1)), limits).await.unwrap();
    let model = Model { jobs: Vec::new(), paused: false, limited };
    let mut bench = Bench { queue, model, shapes, seats: [None, None], claims: 0 };
    for step in steps {
        bench.apply(*step).await;
        bench.agrees(*step).await;
    }
    bench.wind_up().await;
}

#[test]
fn redis_and_the_model_agree_on_many_jobs() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = Server::start();
    let queue = runtime.block_on(server.queue_with(Durability::None));
    let _upkeep = runtime.block_on(async { maintain(&queue) });
    let config = Config { cases: HISTORIES, failure_persistence: None, ..Config::default() };
    let shapes = proptest::collection::vec(shape(), 1..6);
    let steps = proptest::collection::vec(step(), 1..24);
    TestRunner::new(config)
        .run(&(any::<bool>(), shapes, steps), |(limited, shapes, steps)| {
            runtime.block_on(async {
                compare(&queue, limited, &shapes, &steps).await;
                // What has ended would be looked through again after each of the next.
                let mut wire = server.wire().await;
                redis::cmd("FLUSHALL").query_async::<()>(&mut wire).await.unwrap();
            });
            Ok(())
        })
        .unwrap();
}
