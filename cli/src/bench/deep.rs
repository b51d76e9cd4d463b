//! `rhizome bench queue --deep N`: whether a full queue is as fast as one that is nearly empty.
//!
//! Two redis-servers, one with 10,000 jobs and one with N, each with its upkeep. They are given the same
//! to submit, to claim and to drain, in turns so short that both see the same machine; ten turns are a
//! round. Then the full one is killed, comes back, and is measured once more. To claim is to be given
//! leases; to drain is that, and to end each job.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rhizome_queue::Durability;
use rhizome_queue::bench::Probe;
use serde_json::json;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::load::{Server, drain, failed, finish, make_jobs, next, open};
use crate::cli::Globals;
use crate::error::{Error, misuse};
use crate::output;

/// What a queue holds that is nearly empty.
const SHALLOW: usize = 10_000;
const TURNS: usize = 10;
/// Jobs that are submitted, claimed and drained per turn.
const PER_TURN: usize = 5_000;
/// Jobs that are made at a time while the queue is filled.
const FILL: usize = 100_000;
/// Leases at a time.
const SLOTS: usize = 2048;

/// How long it took, in seconds.
#[derive(Clone, Copy, Default)]
struct Times {
    submit: f64,
    claim: f64,
    drain: f64,
}

/// Rates beside those of another.
#[derive(Clone, Copy)]
struct Ratios {
    submit: f64,
    claim: f64,
    drain: f64,
}

pub(super) async fn run(jobs: usize, rounds: usize, globals: &Globals) -> Result<ExitCode, Error> {
    if jobs < SHALLOW || rounds == 0 {
        return Err(
            misuse(format!("--deep takes {SHALLOW} jobs or more, --rounds one or more")).into()
        );
    }
    let (shallow, _upkeep) = filled(SHALLOW).await?;
    let (mut deep, upkeep) = filled(jobs).await?;
    let memory = memory(&deep).await?;
    let busy = compare(&shallow, &deep, rounds).await?;
    let mut chores_s = at_rest(&deep).await?;
    let before = compare(&shallow, &deep, rounds).await?;
    output::note("restart");
    drop(upkeep);
    let begun = Instant::now();
    deep.restart().await?;
    let restart_s = begun.elapsed().as_secs_f64();
    let _upkeep_again = keep_up(&deep);
    chores_s += at_rest(&deep).await?;
    let after = compare(&shallow, &deep, rounds).await?;
    let kept: u64 = deep.queue.stats().await.map_err(failed)?.iter().map(|q| q.ready).sum();
    let figures = [
        ("submit_ratio", before.submit, "submit rate beside that with 10,000 jobs"),
        ("claim_ratio", before.claim, "claim rate beside that with 10,000 jobs"),
        ("drain_ratio", before.drain, "drain rate beside that with 10,000 jobs"),
        ("submit_ratio_after_restart", after.submit, "submit rate, after the restart"),
        ("claim_ratio_after_restart", after.claim, "claim rate, after the restart"),
        ("drain_ratio_after_restart", after.drain, "drain rate, after the restart"),
        ("restart_s", restart_s, "seconds until redis-server was back"),
        ("submit_ratio_at_once", busy.submit, "submit rate right after it was filled"),
        ("claim_ratio_at_once", busy.claim, "claim rate right after it was filled"),
        ("drain_ratio_at_once", busy.drain, "drain rate right after it was filled"),
        ("chores_s", chores_s, "seconds that redis-server's own chores were waited for"),
        ("memory_gib", memory, "GiB that redis-server needs for them"),
        ("lost", jobs as f64 - kept as f64, "jobs that the restart lost"),
    ];
    if globals.json {
        let round = |v: f64| (v * 1000.0).round() / 1000.0;
        let pairs = figures.map(|(key, value, _)| (key.to_owned(), json!(round(value))));
        output::json(&serde_json::Value::Object(pairs.into_iter().collect()));
    } else {
        for (_, value, words) in figures {
            output::line(format_args!("{value:>12.2}  {words}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// With its upkeep, as on a node.
async fn filled(jobs: usize) -> Result<(Server, DropGuard), Error> {
    output::note(format!("fills a queue with {jobs} jobs"));
    let server = Server::start(Durability::Everysec).await?;
    let upkeep = keep_up(&server);
    let mut left = jobs;
    while left > 0 {
        let some = left.min(FILL);
        server.queue.submit(&make_jobs(some)?).await.map_err(failed)?;
        left -= some;
    }
    Ok((server, upkeep))
}

/// Until the guard is dropped.
fn keep_up(server: &Server) -> DropGuard {
    let (queue, stop) = (server.queue.clone(), CancellationToken::new());
    let stopped = stop.clone();
    tokio::spawn(async move { queue.maintain(stopped).await });
    stop.drop_guard()
}

/// Waits until it does nothing besides its work, as one that was filled or started does for a while.
async fn at_rest(server: &Server) -> Result<f64, Error> {
    let mut probe = Probe::open(&server.socket()).await.map_err(failed)?;
    let begun = Instant::now();
    let mut said = None;
    while let Some(chore) = probe.chore().await.map_err(failed)? {
        if said.replace(chore) != Some(chore) {
            output::note(format!("waits while redis-server {chore}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// The rates of the one beside those of the other: medians.
async fn compare(shallow: &Server, deep: &Server, rounds: usize) -> Result<Ratios, Error> {
    let mut ratios = Vec::new();
    for n in 1..=rounds {
        let (mut few, mut many) = (Times::default(), Times::default());
        for _ in 0..TURNS {
            turn(shallow, &mut few).await?;
            turn(deep, &mut many).await?;
        }
        let ratio = Ratios {
            submit: few.submit / many.submit,
            claim: few.claim / many.claim,
            drain: few.drain / many.drain,
        };
        output::note(format!(
            "round {n} of {rounds}: submits {:.2}, claims {:.2}, drains {:.2} times as fast",
            ratio.submit, ratio.claim, ratio.drain
        ));
        ratios.push(ratio);
    }
    Ok(Ratios {
        submit: median(&ratios, |r| r.submit),
        claim: median(&ratios, |r| r.claim),
        drain: median(&ratios, |r| r.drain),
    })
}

/// As many come as go, so that the queue stays as full as it is.
async fn turn(server: &Server, times: &mut Times) -> Result<(), Error> {
    submit(server, times).await?;
    let mut runner = open(&server.queue, &unique(), SLOTS).await?;
    let begun = Instant::now();
    drain(&mut runner, PER_TURN).await?;
    times.drain += begun.elapsed().as_secs_f64();
    runner.close().await;
    submit(server, times).await?;
    claim(server, times).await
}

async fn submit(server: &Server, times: &mut Times) -> Result<(), Error> {
    let jobs = make_jobs(PER_TURN)?;
    let begun = Instant::now();
    server.queue.submit(&jobs).await.map_err(failed)?;
    times.submit += begun.elapsed().as_secs_f64();
    Ok(())
}

/// All are claimed before the first is ended.
async fn claim(server: &Server, times: &mut Times) -> Result<(), Error> {
    let mut runner = open(&server.queue, &unique(), PER_TURN).await?;
    let begun = Instant::now();
    let mut leases = Vec::new();
    while leases.len() < PER_TURN {
        leases.push(next(&mut runner).await?);
    }
    times.claim += begun.elapsed().as_secs_f64();
    // Each that ends would make room for one more.
    runner.drain();
    finish(leases).await?;
    runner.close().await;
    Ok(())
}

fn unique() -> String {
    uuid::Uuid::new_v4().to_string()
}

async fn memory(server: &Server) -> Result<f64, Error> {
    let mut probe = Probe::open(&server.socket()).await.map_err(failed)?;
    let usage = probe.usage().await.map_err(failed)?;
    Ok(usage.memory as f64 / f64::from(1 << 30))
}

fn median(rounds: &[Ratios], of: impl Fn(&Ratios) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
