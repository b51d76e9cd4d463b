//! What takes its time and hardly uses the machine: idle workers, and workers that die. All of it
//! is measured at the same time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rhizome_queue::{Durability, Queue, QueueConfig};
use tokio_util::sync::CancellationToken;

use crate::ask::Ask;
use crate::figures::{Figure, Measured, Missing, Round, median};
use crate::peers::{Kind, runner_name};
use crate::process::Process;
use crate::server::Server;

const LIMIT: Duration = Duration::from_secs(30);
/// Whoever has not got the job by then is not waited for.
const RECOVERED: Duration = Duration::from_secs(100);
/// A worker that has just started is not idle yet.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
pub struct Windows {
    pub count: usize,
    pub length: Duration,
}

/// Who tells the queue that a worker died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// Its parent, where the queue has a way to be told.
    Seen,
    Unseen,
}

/// Of each peer, in the same order.
pub async fn all(kinds: &[Kind], windows: Windows) -> Vec<Round> {
    join_all(kinds.iter().map(|kind| one(*kind, windows))).await
}

async fn one(kind: Kind, windows: Windows) -> Round {
    let (mut figures, recovered, unseen) =
        tokio::join!(idle(kind, windows), recovery(kind, Death::Seen), async {
            match kind {
                Kind::Rhizome => Some(recovery(kind, Death::Unseen).await),
                _ => None,
            }
        });
    // The others cannot be told: for them it is the same.
    figures.insert(Figure::UnseenRecovery, unseen.unwrap_or_else(|| recovered.clone()));
    figures.insert(Figure::Recovery, recovered);
    figures
}

async fn idle(kind: Kind, windows: Windows) -> Round {
    let figures = [Figure::IdleCommands, Figure::IdleRedisCpu, Figure::IdleClientCpu];
    measure_idle(kind, windows).await.unwrap_or_else(|missing| {
        figures.into_iter().map(|figure| (figure, Err(missing.clone()))).collect()
    })
}

async fn measure_idle(kind: Kind, windows: Windows) -> Result<Round, Missing> {
    let mut server = Server::start(Durability::None).await?;
    let mut worker = Process::start(kind, "idle", &server.socket(), Durability::None)?;
    worker.ask(&Ask::Submit { jobs: 1 }, LIMIT).await?;
    worker.ask(&Ask::Work { total: 1 }, LIMIT).await?;
    tokio::time::sleep(SETTLE).await;
    let mut rounds = Vec::new();
    for _ in 0..windows.count {
        let cpu = worker.ask(&Ask::Usage, LIMIT).await?.cpu_us;
        let before = server.used().await?;
        let begun = Instant::now();
        tokio::time::sleep(windows.length).await;
        let seconds = begun.elapsed().as_secs_f64();
        let after = server.used().await?;
        let used = worker.ask(&Ask::Usage, LIMIT).await?.cpu_us.saturating_sub(cpu);
        // One of them was our own.
        let commands = after.commands - before.commands - 1.0;
        rounds.push(Round::from([
            (Figure::IdleCommands, Ok(commands / seconds)),
            (Figure::IdleRedisCpu, Ok((after.cpu_us - before.cpu_us) / 1e3 / seconds)),
            (Figure::IdleClientCpu, Ok(used as f64 / 1e3 / seconds)),
        ]));
    }
    Ok(median(&rounds))
}

/// From kill -9 of a worker that has a job until another that waits has handled it.
async fn recovery(kind: Kind, death: Death) -> Measured {
    let server = Server::start(Durability::None).await?;
    let socket = server.socket();
    let mut victim = Process::start(kind, "victim", &socket, Durability::None)?;
    let mut heir = Process::start(kind, "heir", &socket, Durability::None)?;
    victim.ask(&Ask::Submit { jobs: 1 }, LIMIT).await?;
    victim.ask(&Ask::Hold, LIMIT).await?;
    heir.ask(&Ask::Work { total: 0 }, LIMIT).await?;

    let stop = CancellationToken::new();
    let supervisor = match kind {
        Kind::Rhizome => {
            let config = QueueConfig { socket, durability: Durability::None };
            Some(Queue::connect(&config).await.map_err(anyhow::Error::from)?)
        }
        _ => None,
    };
    if let Some(queue) = supervisor.clone() {
        let stop = stop.clone();
        tokio::spawn(async move { queue.maintain(stop).await });
    }
    tokio::time::sleep(SETTLE).await;
    let process = victim.id().unwrap_or_default();
    let begun = Instant::now();
    victim.kill().await?;
    if let Some(queue) = supervisor.filter(|_| death == Death::Seen) {
        queue.release_runner(&runner_name(process)).await.map_err(anyhow::Error::from)?;
    }
    let handled = heir.ask(&Ask::Work { total: 1 }, RECOVERED).await;
    let took = begun.elapsed();
    stop.cancel();
    handled.map(|_| took.as_secs_f64())
}
