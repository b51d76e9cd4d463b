//! What runs in the machine whose power is cut.
//!
//! `fill` entrusts jobs to a redis-server and says on the serial line what was answered; `read` looks,
//! after the next start, whether all of that is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use rhizome_chaos::plan::Plan;
use rhizome_chaos::power::{FINISHER, RUN_QUEUE, SUBMITTERS, WAIT_QUEUE, id_of};
use rhizome_chaos::server::Server;
use rhizome_model::{AccountId, Job, JobState, Outcome};
use rhizome_queue::{Durability, Queue, RunnerOptions};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Looks at a time.
const LOOKS: usize = 64;
const MOST_AT_ONCE: u64 = 64;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: What,
    #[arg(long)]
    redis_server: PathBuf,
    /// Where its data are, on the disk.
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    durability: Level,
}

#[derive(Subcommand)]
enum What {
    /// Until the power is cut.
    Fill,
    /// Up to where each writer had an answer.
    Read {
        #[arg(value_delimiter = ',')]
        answered: Vec<u64>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Level {
    Always,
    Everysec,
    None,
}

#[expect(clippy::print_stdout, reason = "the serial line")]
fn say(what: &str) {
    println!("{what}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let durability = match arguments.durability {
        Level::Always => Durability::Always,
        Level::Everysec => Durability::Everysec,
        Level::None => Durability::None,
    };
    let (queue, _server) = open(arguments.redis_server, &arguments.folder, durability).await?;
    match arguments.command {
        What::Fill => fill(queue).await,
        What::Read { answered } => read(queue, &answered).await,
    }
}

async fn open(
    program: PathBuf,
    folder: &Path,
    durability: Durability,
) -> anyhow::Result<(Queue, Server)> {
    let server = Server::open(program, folder, durability)?;
    Ok((Queue::connect(&server.config()).await?, server))
}

async fn fill(queue: Queue) -> anyhow::Result<()> {
    say("ready");
    let mut writers = JoinSet::new();
    for writer in 0..SUBMITTERS {
        writers.spawn(submit(queue.clone(), writer));
    }
    writers.spawn(finish(queue));
    match writers.join_next().await {
        Some(ended) => ended?,
        None => Ok(()),
    }
}

/// Jobs that wait.
async fn submit(queue: Queue, writer: u64) -> anyhow::Result<()> {
    let mut dice = fastrand::Rng::with_seed(writer);
    let mut next = 0;
    loop {
        let some = dice.u64(1..=MOST_AT_ONCE);
        let jobs: Vec<Job> =
            (next..next + some).map(|n| job(writer, n)).collect::<Result<_, _>>()?;
        queue.submit(&jobs).await?;
        next += some;
        say(&format!("answered {writer} {next}"));
    }
}

/// Jobs that run and end, one after the other.
async fn finish(queue: Queue) -> anyhow::Result<()> {
    let options = RunnerOptions {
        name: "one".into(),
        queues: vec![RUN_QUEUE.into()],
        ..RunnerOptions::default()
    };
    let mut runner = queue.runner(options).await?;
    for n in 0.. {
        queue.submit(&[job(FINISHER, n)?]).await?;
        let lease = runner.next().await.context("it is drained")?;
        lease.finish(&Outcome::Succeeded(serde_json::json!(n))).await?;
        say(&format!("answered {FINISHER} {}", n + 1));
    }
    Ok(())
}

fn job(writer: u64, n: u64) -> anyhow::Result<Job> {
    let queue = if writer == FINISHER { RUN_QUEUE } else { WAIT_QUEUE };
    Plan::default().job(id_of(writer, n), queue, AccountId(1))
}

async fn read(queue: Queue, answered: &[u64]) -> anyhow::Result<()> {
    let (mut looks, places) = (JoinSet::new(), Arc::new(Semaphore::new(LOOKS)));
    for (writer, answered) in (0..).zip(answered) {
        for n in 0..*answered {
            let place = places.clone().acquire_owned().await?;
            let queue = queue.clone();
            looks.spawn(async move {
                let record = queue.job(id_of(writer, n)).await;
                drop(place);
                let state = record?.map(|record| record.state);
                let expected =
                    if writer == FINISHER { JobState::Succeeded } else { JobState::Queued };
                anyhow::Ok((state != Some(expected)).then_some((writer, n, state)))
            });
        }
    }
    let mut missing = 0;
    while let Some(looked) = looks.join_next().await {
        if let Some((writer, n, state)) = looked?? {
            missing += 1;
            if missing <= 5 {
                say(&format!("job {n} of writer {writer} is {state:?}"));
            }
        }
    }
    say(&format!("missing {missing}"));
    Ok(())
}
