//! One peer, one round, on a redis-server of its own.
//!
//! ```text
//!   submitter   submit ──────────┐          submit ┐
//!   worker                       drain             both ─▶ one at a time
//!   redis-server  ▲ used         ▲ used     ▲ used
//! ```

use std::time::{Duration, Instant};

use rhizome_queue::Durability;

use crate::ask::{Answer, Ask};
use crate::figures::{Figure, Measured, Missing, Round};
use crate::peers::Kind;
use crate::process::Process;
use crate::server::Server;

/// Of one step.
const LIMIT: Duration = Duration::from_secs(60);
/// Submitted before anything is measured: scripts are loaded by then.
const WARM_UP: usize = 20;
const PACE_US: u64 = 2000;

#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Submitted, and drained, at a time.
    pub jobs: usize,
    /// Dispatched one at a time.
    pub single: usize,
}

pub async fn round(kind: Kind, durability: Durability, size: Size) -> Round {
    let mut figures = Round::new();
    if let Err(missing) = measure(kind, durability, size, &mut figures).await {
        // What comes after it cannot be measured either.
        for figure in figures_of(durability) {
            figures.entry(figure).or_insert_with(|| Err(missing.clone()));
        }
    }
    figures
}

/// Those that are the same for both durabilities are measured once.
fn figures_of(durability: Durability) -> impl Iterator<Item = Figure> {
    let last = if durability == Durability::None { Figure::Memory } else { Figure::ClientCpu };
    Figure::ALL.into_iter().filter(move |f| *f <= last)
}

async fn measure(
    kind: Kind,
    durability: Durability,
    size: Size,
    figures: &mut Round,
) -> Result<(), Missing> {
    let jobs = size.jobs.min(kind.most());
    let mut server = Server::start(durability).await?;
    let socket = server.socket();
    let mut submitter = Process::start(kind, "submitter", &socket, durability)?;
    let mut worker = Process::start(kind, "worker", &socket, durability)?;
    submitter.ask(&Ask::Submit { jobs: WARM_UP }, LIMIT).await?;
    let submitted_before = submitter.ask(&Ask::Usage, LIMIT).await?;
    let worked_before = worker.ask(&Ask::Usage, LIMIT).await?;

    let empty = server.used().await?;
    let submitted = submitter.ask(&Ask::Submit { jobs }, LIMIT).await?;
    figures.insert(Figure::Submit, Ok(jobs as f64 / submitted.seconds));
    let full = server.used().await?;
    if durability == Durability::None {
        let bytes = (full.memory - empty.memory) / jobs as f64;
        figures.insert(Figure::Memory, Ok(bytes));
    }

    let drained = worker.ask(&Ask::Work { total: WARM_UP + jobs }, LIMIT).await?;
    figures.insert(Figure::Drain, Ok((WARM_UP + jobs) as f64 / drained.seconds));
    let done = server.used().await?;
    figures.insert(Figure::RedisCpu, Ok((done.cpu_us - empty.cpu_us) / jobs as f64));
    let cpu = used(&submitted_before, &submitted) + used(&worked_before, &drained);
    figures.insert(Figure::ClientCpu, Ok(cpu / jobs as f64));

    let begun = Instant::now();
    let (ask_submit, ask_work) = (Ask::Submit { jobs }, Ask::Work { total: WARM_UP + 2 * jobs });
    let submit = submitter.ask(&ask_submit, LIMIT);
    let work = worker.ask(&ask_work, LIMIT);
    tokio::try_join!(submit, work)?;
    figures.insert(Figure::Both, Ok(jobs as f64 / begun.elapsed().as_secs_f64()));

    let paced = Ask::Pace { jobs: size.single, every_us: PACE_US };
    let paced = worker.ask(&paced, LIMIT).await?;
    figures.insert(Figure::DispatchP50, share(&paced, size.single, 0.50));
    figures.insert(Figure::DispatchP99, share(&paced, size.single, 0.99));
    Ok(())
}

fn used(before: &Answer, after: &Answer) -> f64 {
    after.cpu_us.saturating_sub(before.cpu_us) as f64
}

/// The latency that this share of all jobs did not exceed.
fn share(paced: &Answer, jobs: usize, share: f64) -> Measured {
    let mut latencies = paced.latencies_us.clone();
    latencies.sort_unstable_by(f64::total_cmp);
    let rank = ((jobs as f64 * share).ceil() as usize).max(1);
    latencies.get(rank - 1).copied().ok_or(Missing::TimedOut(crate::serve::LATEST))
}
