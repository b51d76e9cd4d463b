//! Each step of a client, failed at its first request, its second, and so on.
//!
//! A scenario prepares something, does one step through the proxy, and heals: whoever died is given
//! up, a sound runner does what is left. It is run once to count the requests of the step, then
//! again for each of them and each fault; the checker must be content each time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use futures_util::stream;
use rhizome_chaos::checker::{Records, check, story_of};
use rhizome_chaos::history::{Answer, Effects, History, What};
use rhizome_chaos::plan::{Plan, new_id};
use rhizome_chaos::proxy::{self, Fault, Proxy, what_matters};
use rhizome_chaos::server::Server;
use rhizome_chaos::worker;
use rhizome_model::{AccountId, Event, Job, JobId, Outcome, What as Happened};
use rhizome_queue::{
    Durability, Lease, MaintainOptions, Queue, QueueConfig, QueueError, Runner, RunnerOptions,
    Submission,
};
use tokio_util::sync::CancellationToken;

pub const DEADLINE: Duration = Duration::from_secs(20);
/// Longer than a busy machine lets a runner wait for its turn.
const SILENCE: Duration = Duration::from_secs(3);
/// A round of upkeep takes no longer, on an idle machine.
const ROUND: Duration = Duration::from_millis(40);
const FAULTS: [Fault; 6] = [
    Fault::Before,
    Fault::InReply,
    Fault::Repeat,
    Fault::Outage,
    Fault::DeadBefore,
    Fault::DeadAfter,
];
/// Runs at a time, each with a redis-server of its own: mostly they wait.
const AT_A_TIME: usize = 8;
pub const QUEUE: &str = "volume";
/// No step of a client needs as many.
const MOST: u64 = 60;

/// What depends on the time only: reading news, and heartbeats.
fn counts(name: &str) -> bool {
    what_matters(name) && !matches!(name, "XREAD" | "beat")
}

/// One run of a scenario.
pub struct Bed {
    pub near: Queue,
    /// Through the proxy. Once its process is dead, nobody may use it any more.
    pub far: Queue,
    pub proxy: Arc<Proxy>,
    pub history: History,
    pub jobs: Vec<JobId>,
    /// Who has what the scenario takes.
    pub runner: String,
    /// Where files of this run may lie.
    pub folder: PathBuf,
    /// Which requests of the step count.
    pub counts: proxy::Selector,
    plan: proxy::Plan,
    names: Vec<String>,
    fired: bool,
    runners: Vec<String>,
}

/// Runs the scenario without a fault, then with each fault at each of its requests.
pub async fn fail_everywhere(scenario: impl AsyncFn(&mut Bed) -> anyhow::Result<()>) {
    let (names, _) = run(&scenario, proxy::Plan::Calm).await;
    let requests = names.len() as u64;
    assert!((1..MOST).contains(&requests), "{names:?}");
    let plans = (1..=requests).flat_map(|n| FAULTS.map(|fault| proxy::Plan::Nth(n, fault)));
    let runs = stream::iter(plans).map(|plan| run(&scenario, plan)).buffer_unordered(AT_A_TIME);
    let fired: Vec<bool> = runs.map(|(_, fired)| fired).collect().await;
    let (planned, fired) = (fired.len(), fired.into_iter().filter(|fired| *fired).count());
    println!("{requests} requests {names:?}; {fired} of {planned} faults");
    // Where two things happen at a time, the number of requests varies.
    assert!(fired * 10 >= planned * 7, "only {fired} of {planned} faults happened");
}

/// The requests of its step, and whether there was a fault.
async fn run(
    scenario: &impl AsyncFn(&mut Bed) -> anyhow::Result<()>,
    plan: proxy::Plan,
) -> (Vec<String>, bool) {
    let what = format!("{plan:?}");
    let server = Server::start(Durability::None).unwrap();
    let mut bed = Bed::new(&server, plan).await.unwrap();
    let ran = tokio::time::timeout(2 * DEADLINE, async {
        scenario(&mut bed).await?;
        bed.heal_and_judge().await
    });
    if let Err(error) = ran.await.context("it does not end").flatten() {
        panic!("{what} of {:?}: {error:?}", bed.names);
    }
    (bed.names, bed.fired)
}

pub fn options(name: &str, slots: usize) -> RunnerOptions {
    RunnerOptions {
        name: name.into(),
        queues: vec![QUEUE.into()],
        slots,
        heartbeat: Duration::from_millis(100),
        silence: SILENCE,
        ..RunnerOptions::default()
    }
}

/// Upkeep with short times.
pub fn upkeep() -> MaintainOptions {
    MaintainOptions {
        sweep: Duration::from_millis(30),
        grace: SILENCE,
        ..MaintainOptions::default()
    }
}

/// Waits until it says yes.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !is_so().await {
        ensure!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(())
}

/// For steps that go on by themselves: until the fault has happened, or what else comes has come.
pub async fn linger(proxy: &Proxy) {
    tokio::time::sleep(ROUND).await;
    let end = tokio::time::Instant::now() + 20 * ROUND;
    while proxy.waits_for_fault() && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

impl Bed {
    async fn new(server: &Server, plan: proxy::Plan) -> anyhow::Result<Self> {
        let socket = server.folder().join("proxy.sock");
        let proxy = Arc::new(Proxy::start(&socket, &server.socket())?);
        let near = Queue::connect(&server.config()).await?;
        let far = Queue::connect(&QueueConfig { socket, ..server.config() }).await?;
        Ok(Self {
            near,
            far,
            proxy,
            history: History::default(),
            jobs: Vec::new(),
            runner: "far".into(),
            folder: server.folder().to_owned(),
            counts,
            plan,
            names: Vec::new(),
            fired: false,
            runners: Vec::new(),
        })
    }

    /// The step: its requests count, and one of them meets the fault. None when the client died.
    pub async fn step<T, E>(
        &mut self,
        step: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<Option<T>>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        self.proxy.count(self.counts, self.plan.clone());
        let done = tokio::select! {
            done = tokio::time::timeout(DEADLINE, step) => Some(done),
            () = self.proxy.died() => None,
        };
        self.names = self.proxy.calm();
        self.fired = self.proxy.fired() > 0;
        match done {
            // It may have died with its last request, and heard nothing of what it was answered.
            Some(done) if !self.proxy.is_dead() => {
                Ok(Some(done.context("the step does not end")??))
            }
            Some(_) | None => {
                for runner in &self.runners {
                    self.history.note_death(runner);
                }
                Ok(None)
            }
        }
    }

    /// A job that succeeds at once.
    pub fn job(&mut self) -> anyhow::Result<Job> {
        self.planned(&Plan::default())
    }

    pub fn planned(&mut self, plan: &Plan) -> anyhow::Result<Job> {
        let id = new_id(&mut fastrand::Rng::new());
        self.jobs.push(id);
        plan.job(id, QUEUE, AccountId(1))
    }

    /// Submits what the scenario needs, past the proxy.
    pub async fn given(&mut self, job: &Job) -> anyhow::Result<()> {
        self.submitting(std::slice::from_ref(job));
        let answers = self.near.submit(std::slice::from_ref(job)).await?;
        self.submitted(std::slice::from_ref(job), Some(answers))
    }

    pub fn submitting(&self, jobs: &[Job]) {
        jobs.iter().for_each(|job| self.history.note(job.id, What::Submitting));
    }

    /// None: there was no answer.
    pub fn submitted(&self, jobs: &[Job], answers: Option<Vec<Submission>>) -> anyhow::Result<()> {
        let answers =
            answers.map_or_else(|| vec![None; jobs.len()], |a| a.into_iter().map(Some).collect());
        ensure!(answers.len() == jobs.len(), "an answer to each");
        for (job, answer) in jobs.iter().zip(answers) {
            let heard = match answer {
                None => What::Unanswered,
                Some(Submission::Queued) => What::Accepted,
                Some(Submission::Known(state)) => What::Known { state },
                Some(Submission::Duplicate(of)) => What::Duplicate { of },
            };
            self.history.note(job.id, heard);
        }
        Ok(())
    }

    /// A runner of the client; what it has is given back when the client dies.
    pub async fn far_runner(&mut self, slots: usize) -> anyhow::Result<Runner> {
        self.far_runner_with(options("far", slots)).await
    }

    pub async fn far_runner_with(&mut self, options: RunnerOptions) -> anyhow::Result<Runner> {
        self.will_run();
        Ok(self.far.runner(options).await?)
    }

    /// A runner of the client whose opening is part of the step.
    pub fn will_run(&mut self) {
        self.runners.push("far".into());
    }

    pub fn began(&self, lease: &Lease) {
        let (attempt, pid) = (lease.attempt, std::process::id());
        self.history.note(lease.job.id, What::Began { attempt, runner: self.runner.clone(), pid });
    }

    pub fn ended(&self, lease: &Lease) {
        let attempt = lease.attempt;
        self.history.note(lease.job.id, What::Ended { attempt, runner: self.runner.clone() });
    }

    pub fn told(&self, lease: &Lease, answer: Answer) {
        let attempt = lease.attempt;
        self.history
            .note(lease.job.id, What::Told { attempt, runner: self.runner.clone(), answer });
    }

    /// The next job of the client's runner.
    pub async fn take(&self, runner: &mut Runner) -> anyhow::Result<Lease> {
        let lease = tokio::time::timeout(DEADLINE, runner.next()).await;
        let lease = lease.context("no job comes")?.context("it is drained")?;
        self.began(&lease);
        Ok(lease)
    }

    /// Ends the last job as the scenario wants it, past everything that was planned.
    pub async fn finish(&self, lease: &Lease) -> Result<(), QueueError> {
        lease.finish(&Outcome::Succeeded(serde_json::json!(lease.attempt))).await
    }

    /// Whether the event was appended, and not twice.
    pub async fn is_there_once(&self, event: &Event) -> anyhow::Result<()> {
        let last = Event { what: Happened::Log { message: "last".into() }, ..event.clone() };
        self.near.publish(std::slice::from_ref(&last)).await?;
        let events = self.near.follow(None).take_while(|e| {
            let go_on = e.as_ref().is_ok_and(|(_, e)| *e != last);
            async move { go_on }
        });
        let seen: Vec<_> = events.collect().await;
        let ours = seen.iter().flatten().filter(|(_, e)| e == event).count();
        ensure!(ours == 1, "the event is there {ours} times");
        Ok(())
    }

    /// A sound runner does what is left; then everything must have ended, once.
    async fn heal_and_judge(&mut self) -> anyhow::Result<()> {
        for runner in &self.runners {
            self.near.release_runner(runner).await?;
        }
        let stop = CancellationToken::new();
        let upkeep = self.near.maintain_with(upkeep(), stop.clone());
        let runner = self.near.runner(options("near", 4)).await?;
        let work = worker::work(runner, Effects::Here(self.history.clone()), stop.clone());
        let (near, jobs) = (self.near.clone(), self.jobs.clone());
        let waiting = async {
            let _stop = stop.clone().drop_guard();
            for id in &jobs {
                until("everything has ended", async || {
                    near.job(*id).await.is_ok_and(|r| r.is_none_or(|r| r.state.is_ended()))
                })
                .await
                .with_context(|| format!("job {id}"))?;
            }
            anyhow::Ok(())
        };
        let ((), worked, waited) = tokio::join!(upkeep, work, waiting);
        let records = Records::read(&self.near, &self.jobs, &[QUEUE]).await?;
        let verdict = check(&self.history, &records);
        let stories = || -> String {
            self.jobs.iter().take(3).map(|id| story_of(&self.history, &records, *id)).collect()
        };
        waited.with_context(stories)?;
        worked?;
        ensure!(verdict.holds(), "{verdict}\n{}", stories());
        let stats = self.near.stats().await?;
        let left = stats.iter().find(|stats| stats.queue == QUEUE);
        ensure!(
            left.is_none_or(|left| (left.ready, left.running, left.delayed) == (0, 0, 0)),
            "something is left over: {left:?}"
        );
        Ok(())
    }
}
