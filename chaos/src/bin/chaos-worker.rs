//! One runner of the chaos tests, in a process that can be killed. It ends when its standard input
//! does.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use rhizome_chaos::history::Effects;
use rhizome_chaos::plan::QUEUES;
use rhizome_chaos::worker;
use rhizome_queue::{Durability, Queue, QueueConfig, RunnerOptions};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    name: String,
    #[arg(long)]
    socket: PathBuf,
    /// Where to write what the jobs do.
    #[arg(long)]
    effects: PathBuf,
    #[arg(long)]
    spool: PathBuf,
    #[arg(long)]
    slots: usize,
    #[arg(long)]
    heartbeat_ms: u64,
    #[arg(long)]
    silence_ms: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("RHIZOME_CHAOS_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let effects = Effects::append_to(&arguments.effects)?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    std::thread::spawn(move || {
        // Its end or its failure: nobody holds the other end any more.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.cancel();
    });
    let config = QueueConfig { socket: arguments.socket, durability: Durability::Always };
    let options = RunnerOptions {
        name: arguments.name,
        queues: QUEUES.map(str::to_owned).to_vec(),
        slots: arguments.slots,
        heartbeat: Duration::from_millis(arguments.heartbeat_ms),
        silence: Duration::from_millis(arguments.silence_ms),
        spool: Some(arguments.spool),
    };
    let runner = async { anyhow::Ok(Queue::connect(&config).await?.runner(options).await?) };
    match stop.run_until_cancelled(runner).await {
        Some(runner) => worker::work(runner?, effects, stop).await,
        None => Ok(()),
    }
}
