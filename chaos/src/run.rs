//! One bad day: jobs come, are cancelled and looked at, while the nemesis rages. Then all heals,
//! everything must end, and the checker judges.

mod clients;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rhizome_model::JobId;
use rhizome_queue::{Durability, MaintainOptions, Queue, QueueConfig};
use tokio_util::sync::CancellationToken;

use crate::checker::{Records, Verdict, check};
use crate::fleet::{Crew, Fleet};
use crate::history::History;
use crate::nemesis::Nemesis;
use crate::plan::QUEUES;
use crate::proxy::Proxy;
use crate::server::Server;
use clients::{Clients, end_of_all};

const HEARTBEAT: Duration = Duration::from_millis(300);
const SILENCE: Duration = Duration::from_millis(1500);
const SWEEP: Duration = Duration::from_millis(250);

#[derive(Debug, Clone)]
pub struct Day {
    /// The program `chaos-worker`.
    pub worker: PathBuf,
    pub jobs: usize,
    pub runners: usize,
    pub slots: usize,
    pub seed: u64,
    /// The nemesis rages while the jobs come, which takes this long.
    pub lasts: Duration,
    /// And then everything ends within this.
    pub heals: Duration,
    /// Whether redis-server also stands still for a minute.
    pub long: bool,
}

/// What came of a day.
pub struct Evening {
    pub history: History,
    pub records: Records,
    pub verdict: Verdict,
}

impl Day {
    pub async fn run(&self, tell: fn(&str)) -> anyhow::Result<Evening> {
        let mut server = Server::start(Durability::Always)?;
        let proxy = Proxy::start(&server.folder().join("proxy.sock"), &server.socket())?;
        // Who looks after the fleet is on the node as redis-server is; clients and runners are not.
        let near = Queue::connect(&server.config()).await?;
        let history = History::default();
        let crew = self.crew(&server, &proxy)?;
        let effects = crew.effects.clone();
        let fleet = Fleet::start(crew, self.runners, near.clone(), history.clone());
        let _upkeep = maintain(&near, &fleet);

        let (socket, durability) = (proxy.socket().to_owned(), Durability::Always);
        let far = Queue::connect(&QueueConfig { socket, durability }).await?;
        let mut nemesis = if self.long {
            Nemesis::long(self.seed, SILENCE)
        } else {
            Nemesis::short(self.seed, SILENCE)
        };
        let clients = Clients::new(far, history.clone(), self.seed);
        let begin = Instant::now();
        let tell_when =
            |what: &str| tell(&format!("{:>7.2} s  {what}", begin.elapsed().as_secs_f64()));
        let submitted = {
            let submitting = clients.submit_all(self.jobs, self.lasts);
            let raging = nemesis.rage(&mut server, &proxy, &fleet, tell_when);
            tokio::select! {
                submitted = submitting => submitted?,
                raged = raging => { raged?; Vec::new() }
            }
        };
        tell_when("all jobs are submitted; the day is over");
        heal(&mut server, &proxy, &fleet)?;
        let ended = end_of_all(&near, &submitted, self.heals).await;
        tell_when(match &ended {
            Ok(()) => "all have ended",
            Err(_) => "not all have ended in time",
        });
        fleet.stop(self.heals).await?;
        let records = Records::read(&near, &submitted, &QUEUES).await?;
        history.read(&effects)?;
        let verdict = check(&history, &records);
        Ok(Evening { history, records, verdict })
    }

    fn crew(&self, server: &Server, proxy: &Proxy) -> anyhow::Result<Crew> {
        let effects = server.folder().join("effects");
        let spool = server.folder().join("spool");
        std::fs::create_dir(&spool)?;
        std::fs::write(&effects, "").context("cannot make the file of effects")?;
        Ok(Crew {
            program: self.worker.clone(),
            socket: proxy.socket().to_owned(),
            effects,
            spool,
            slots: self.slots,
            heartbeat: HEARTBEAT,
            silence: SILENCE,
        })
    }
}

fn maintain(queue: &Queue, fleet: &Fleet) -> tokio_util::sync::DropGuard {
    let stop = CancellationToken::new();
    let options = MaintainOptions { sweep: SWEEP, grace: SILENCE, fence: Some(fleet.fence()) };
    let (queue, token) = (queue.clone(), stop.clone());
    tokio::spawn(async move { queue.maintain_with(options, token).await });
    stop.drop_guard()
}

/// Whoever the nemesis was about to bring back comes back now.
fn heal(server: &mut Server, proxy: &Proxy, fleet: &Fleet) -> anyhow::Result<()> {
    proxy.calm();
    if server.is_gone()? {
        server.start_again()?;
    } else {
        server.thaw()?;
    }
    for runner in fleet.runners() {
        fleet.signal(&runner, nix::sys::signal::Signal::SIGCONT);
    }
    Ok(())
}

impl Evening {
    /// The stories of those with whom something is wrong, at most so many.
    pub fn stories(&self, most: usize) -> Vec<String> {
        let mut jobs: Vec<JobId> = self.verdict.wrong.iter().filter_map(|w| w.job).collect();
        jobs.dedup();
        let story = |id: &JobId| crate::checker::story_of(&self.history, &self.records, *id);
        jobs.iter().take(most).map(story).collect()
    }
}
