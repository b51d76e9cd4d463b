//! `rhizome bench submit`: deployments of `output("ok", 1);`, from signing to the result in hand.
//!
//! Latency is measured one at a time, throughput with several at once; each is a new version of a
//! deployment, so that nothing piles up. Without a system that runs, one is started for it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use rhizome_model::Failure;
use serde_json::json;

use super::system::{Submitter, on_a_system};
use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;

const SCRIPT: &str = "output(\"ok\", 1);";

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome bench submit --count 500 --json")]
pub struct Args {
    /// Deployments that are measured one at a time.
    #[arg(long, default_value_t = 200, value_name = "N")]
    count: u64,
    /// Deployments before anything is measured.
    #[arg(long, default_value_t = 20, value_name = "N")]
    warmup: u64,
    /// Deployments under way at a time when throughput is measured.
    #[arg(long, default_value_t = 16, value_name = "N")]
    parallel: u64,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    on_a_system(globals, async |globals, session| measure(&args, globals, session).await).await
}

/// Deployments per second, so many at a time.
pub(super) async fn throughput(globals: &Globals, lanes: u64, count: u64) -> Result<f64, Error> {
    let measure = async |_: &Globals, session: &Session| {
        let mut submitters = Vec::new();
        for lane in 0..lanes {
            submitters.push(open(session, lane).await?);
        }
        try_join_all(submitters.iter_mut().map(Submitter::deploy)).await?;
        let each = (count / lanes).max(1);
        let begun = Instant::now();
        try_join_all(submitters.iter_mut().map(|s| s.deploy_times(each))).await?;
        let per_s = (each * lanes) as f64 / begun.elapsed().as_secs_f64();
        try_join_all(submitters.iter_mut().map(Submitter::delete)).await?;
        Ok(per_s)
    };
    on_a_system(globals, measure).await
}

async fn measure(args: &Args, globals: &Globals, session: &Session) -> Result<ExitCode, Error> {
    let lanes = args.parallel.max(1);
    let mut submitters = Vec::new();
    for lane in 0..lanes {
        submitters.push(open(session, lane).await?);
    }
    for _ in 0..args.warmup {
        submitters[0].deploy().await?;
    }
    let mut latencies = Vec::new();
    for _ in 0..args.count.max(1) {
        let begun = Instant::now();
        submitters[0].deploy().await?;
        latencies.push(begun.elapsed());
    }
    latencies.sort_unstable();

    let each = (args.count / lanes).max(1);
    let begun = Instant::now();
    try_join_all(submitters.iter_mut().map(|s| s.deploy_times(each))).await?;
    let per_s = (each * lanes) as f64 / begun.elapsed().as_secs_f64();
    try_join_all(submitters.iter_mut().map(Submitter::delete)).await?;

    let p50_ms = percentile(&latencies, 0.50);
    let p99_ms = percentile(&latencies, 0.99);
    if globals.json {
        output::json(&json!({
            "count": latencies.len(), "p50_ms": p50_ms, "p99_ms": p99_ms,
            "parallel": lanes, "per_s": (per_s * 10.0).round() / 10.0,
        }));
    } else {
        output::line(format_args!(
            "submit to result: p50 {p50_ms} ms, p99 {p99_ms} ms, one at a time"
        ));
        output::line(format_args!("{per_s:.0} per second, {lanes} at a time"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn open(session: &Session, lane: u64) -> Result<Submitter<'_>, Failure> {
    Submitter::open(session, &format!("bench-{lane}"), SCRIPT).await
}

/// In milliseconds, to a hundredth.
pub(super) fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let rank = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len());
    (sorted[rank - 1].as_secs_f64() * 100_000.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let sorted: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 0.5), 50.0);
        assert_eq!(percentile(&sorted, 0.99), 99.0);
        assert_eq!(percentile(&sorted[..1], 0.99), 1.0);
    }
}
