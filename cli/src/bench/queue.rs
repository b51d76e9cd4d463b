//! `rhizome bench queue`: the queue of a node by itself, on redis-servers of its own.
//!
//! Every round has a new redis-server per durability. Its jobs are 300 bytes of JSON, do nothing,
//! and leave a result, a record and their news. What is printed is the median of the rounds.
//!
//! ```text
//!   round: floor ─▶ submit ─▶ drain ─▶ both at once ─▶ one at a time ─▶ kill -9    (none)
//!          submit ─▶ drain                                                         (always)
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use rhizome_model::Outcome;
use rhizome_queue::bench::Probe;
use rhizome_queue::{Durability, Queue, QueueConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::deep;
use super::load::{BYTES, Server, drain, failed, make_jobs, next, open, rate};
use crate::cli::Globals;
use crate::error::{Error, internal, misuse};
use crate::output;
use crate::services::program;

/// Leases at a time of the runner that drains.
const SLOTS: usize = 4096;
/// Of the runner that is killed.
const VICTIM: &str = "victim";
const MILLIS: f64 = 1e3;
const MICROS: f64 = 1e6;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome bench queue --json")]
pub struct Args {
    /// Jobs that are submitted, and drained, per round.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    jobs: usize,
    /// Jobs that are dispatched one at a time per round.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    single: usize,
    /// Rounds, of which the median is printed.
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// Instead: rates with so many jobs in the queue beside those with 10,000, and after a restart.
    #[arg(long, value_name = "N")]
    deep: Option<usize>,
    /// Lease a job on this redis-server and hold it until killed: the victim of a round.
    #[arg(long, hide = true, value_name = "SOCKET")]
    hold: Option<PathBuf>,
}

/// One figure per key.
type Figures = BTreeMap<&'static str, f64>;

/// Key, words, and how many decimals, in the order in which they are printed.
const SHOWN: [(&str, &str, usize); 11] = [
    ("submit_per_s", "submitted per second", 0),
    ("drain_per_s", "drained per second", 0),
    ("drain_durable_per_s", "drained per second, every answer on disk", 0),
    ("both_per_s", "submitted and drained at once, per second", 0),
    ("dispatch_p50_us", "µs from submitting one job to its lease, p50", 0),
    ("dispatch_p99_us", "µs, p99", 0),
    ("redis_us_per_job", "µs of redis-server's CPU per job, submitted and drained", 2),
    ("bytes_per_job", "bytes of redis-server's memory per queued job", 0),
    ("recovery_ms", "ms from kill -9 of a runner to the next lease of its job", 2),
    ("floor_submit_per_s", "submitted per second by raw Redis (XADD)", 0),
    ("floor_drain_per_s", "drained per second by raw Redis (XREADGROUP, XACK)", 0),
];

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    if let Some(socket) = &args.hold {
        return hold(socket).await;
    }
    if let Some(jobs) = args.deep {
        return deep::run(jobs, args.rounds, globals).await;
    }
    if args.jobs == 0 || args.single == 0 || args.rounds == 0 {
        return Err(misuse("there is nothing to measure: give numbers above 0").into());
    }
    let mut rounds = Vec::new();
    for n in 1..=args.rounds {
        output::note(format!("round {n} of {}", args.rounds));
        rounds.push(round(&args).await?);
    }
    let figures = medians_of(&rounds);
    if globals.json {
        let rounded = figures.iter().map(|(key, v)| ((*key).to_owned(), json!(rounded(key, *v))));
        output::json(&Value::Object(rounded.collect()));
    } else {
        for (key, words, decimals) in SHOWN {
            output::line(format_args!("{:>12.decimals$}  {words}", figures[key]));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn round(args: &Args) -> Result<Figures, Error> {
    let mut figures = Figures::new();
    let server = Server::start(Durability::None).await?;
    let mut probe = Probe::open(&server.socket()).await.map_err(failed)?;
    let floor = probe.floor(args.jobs, BYTES).await.map_err(failed)?;
    figures.insert("floor_submit_per_s", floor.submit_per_s);
    figures.insert("floor_drain_per_s", floor.drain_per_s);

    let queue = &server.queue;
    let jobs = make_jobs(args.jobs)?;
    let before = probe.usage().await.map_err(failed)?;
    let begun = Instant::now();
    queue.submit(&jobs).await.map_err(failed)?;
    figures.insert("submit_per_s", rate(jobs.len(), begun));
    let full = probe.usage().await.map_err(failed)?;
    let bytes = full.memory.saturating_sub(before.memory);
    figures.insert("bytes_per_job", bytes as f64 / jobs.len() as f64);

    let mut runner = open(queue, "drain", SLOTS).await?;
    let begun = Instant::now();
    drain(&mut runner, jobs.len()).await?;
    figures.insert("drain_per_s", rate(jobs.len(), begun));
    let after = probe.usage().await.map_err(failed)?;
    let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
    figures.insert("redis_us_per_job", cpu * MICROS / jobs.len() as f64);

    let jobs = make_jobs(args.jobs)?;
    let begun = Instant::now();
    let submit = async { queue.submit(&jobs).await.map_err(failed) };
    tokio::try_join!(submit, drain(&mut runner, jobs.len()))?;
    figures.insert("both_per_s", rate(jobs.len(), begun));
    runner.close().await;

    dispatch(queue, args.single, &mut figures).await?;
    figures.insert("recovery_ms", recover(&server).await?.as_secs_f64() * MILLIS);
    drop(server);

    let durable = Server::start(Durability::Always).await?;
    durable.queue.submit(&make_jobs(args.jobs)?).await.map_err(failed)?;
    let mut runner = open(&durable.queue, "durable", SLOTS).await?;
    let begun = Instant::now();
    drain(&mut runner, args.jobs).await?;
    figures.insert("drain_durable_per_s", rate(args.jobs, begun));
    runner.close().await;
    Ok(figures)
}

/// One job at a time, to a runner that waits.
async fn dispatch(queue: &Queue, jobs: usize, figures: &mut Figures) -> Result<(), Error> {
    let mut runner = open(queue, "single", 1).await?;
    let outcome = Outcome::Succeeded(Value::Null);
    let mut latencies = Vec::with_capacity(jobs);
    for job in make_jobs(jobs)? {
        // What waits is a runner that blocks already: it had the time to.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let begun = Instant::now();
        queue.submit(std::slice::from_ref(&job)).await.map_err(failed)?;
        let lease = next(&mut runner).await?;
        latencies.push(begun.elapsed());
        lease.finish(&outcome).await.map_err(failed)?;
    }
    runner.close().await;
    latencies.sort_unstable();
    for (key, share) in [("dispatch_p50_us", 0.50), ("dispatch_p99_us", 0.99)] {
        let rank = ((latencies.len() as f64 * share).ceil() as usize).clamp(1, latencies.len());
        figures.insert(key, latencies[rank - 1].as_secs_f64() * MICROS);
    }
    Ok(())
}

/// From kill -9 of the process that holds a job, seen by its parent, to the next lease of the job.
async fn recover(server: &Server) -> Result<Duration, Error> {
    server.queue.submit(&make_jobs(1)?).await.map_err(failed)?;
    let mut victim = Command::new(program()?)
        .args(["bench", "queue", "--hold"])
        .arg(server.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| internal("cannot start a runner", &e))?;
    let mut said = String::new();
    if let Some(stdout) = victim.stdout.take() {
        let read = BufReader::new(stdout).read_line(&mut said).await;
        read.map_err(|e| internal("cannot hear the runner", &e))?;
    }
    if said.trim() != "held" {
        return Err(misuse("the runner that was to be killed never had a job").into());
    }
    let mut heir = open(&server.queue, "heir", 1).await?;
    let begun = Instant::now();
    victim.start_kill().map_err(|e| internal("cannot kill the runner", &e))?;
    victim.wait().await.map_err(|e| internal("cannot wait for the runner's end", &e))?;
    server.queue.release_runner(VICTIM).await.map_err(failed)?;
    let lease = next(&mut heir).await?;
    let took = begun.elapsed();
    lease.finish(&Outcome::Succeeded(Value::Null)).await.map_err(failed)?;
    heir.close().await;
    Ok(took)
}

/// What the victim does.
async fn hold(socket: &Path) -> Result<ExitCode, Error> {
    let config = QueueConfig { socket: socket.to_owned(), durability: Durability::None };
    let queue = Queue::connect(&config).await.map_err(failed)?;
    let mut runner = open(&queue, VICTIM, 1).await?;
    let _lease = next(&mut runner).await?;
    output::line("held");
    std::future::pending().await
}

fn medians_of(rounds: &[Figures]) -> Figures {
    let median = |key: &'static str| {
        let mut values: Vec<f64> = rounds.iter().filter_map(|r| r.get(key)).copied().collect();
        values.sort_unstable_by(f64::total_cmp);
        (key, values[values.len() / 2])
    };
    SHOWN.iter().map(|(key, _, _)| median(key)).collect()
}

/// With the decimals that are printed.
fn rounded(key: &str, value: f64) -> f64 {
    let decimals = SHOWN.iter().find(|(k, _, _)| *k == key).map_or(0, |(_, _, d)| *d);
    let unit = 10f64.powi(i32::try_from(decimals).unwrap_or_default());
    (value * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_round() {
        let round = |v: f64| SHOWN.iter().map(|(key, _, _)| (*key, v)).collect::<Figures>();
        let figures = medians_of(&[round(9.0), round(1.0), round(2.0)]);
        assert!(figures.values().all(|v| *v == 2.0));
    }

    #[test]
    fn figures_have_the_decimals_that_are_shown() {
        assert_eq!(rounded("submit_per_s", 1.6), 2.0);
        assert_eq!(rounded("redis_us_per_job", 1.006), 1.01);
    }
}
