//! `make chaos`: many jobs on a very bad day. Ends with 1, and the stories of those concerned, when
//! anything was lost or doubled.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rhizome_chaos::run::Day;

const HEALS: Duration = Duration::from_secs(180);
const STORIES: usize = 5;

#[derive(Parser)]
#[command(about = "Kills runners and redis-server while jobs run, and checks that each ends once")]
struct Arguments {
    #[arg(long, default_value_t = 100_000)]
    jobs: usize,
    #[arg(long, default_value_t = 16)]
    runners: usize,
    /// Jobs that a runner does at a time.
    #[arg(long, default_value_t = 16)]
    slots: usize,
    /// Whatever is random comes from it; another one each time unless it is given.
    #[arg(long)]
    seed: Option<u64>,
    /// The jobs come, and bad things happen, for so long.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// redis-server never stands still for a whole minute.
    #[arg(long)]
    short: bool,
}

#[expect(clippy::print_stdout, reason = "this is what it is for")]
fn tell(what: &str) {
    println!("{what}");
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("RHIZOME_CHAOS_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    tell(&format!("seed {seed}"));
    let day = Day {
        worker: worker()?,
        jobs: arguments.jobs,
        runners: arguments.runners,
        slots: arguments.slots,
        seed,
        lasts: Duration::from_secs_f64(arguments.minutes * 60.0),
        heals: HEALS,
        long: !arguments.short,
    };
    let evening = day.run(tell).await?;
    evening.stories(STORIES).iter().for_each(|story| tell(story));
    tell(&format!("{}\nseed {seed}", evening.verdict));
    Ok(if evening.verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// It lies beside us.
fn worker() -> anyhow::Result<PathBuf> {
    let worker = std::env::current_exe()?.with_file_name("chaos-worker");
    anyhow::ensure!(worker.exists(), "{} is missing: build it", worker.display());
    Ok(worker)
}
