//! Rhizome's queue beside other queues on Redis: same payload, same redis-server, in turn.
//!
//! ```text
//!   per setting of redis-server ─▶ per round ─▶ per peer: a new redis-server, its processes
//!   then, all at the same time:    idle workers, and workers that die
//! ```
//!
//! Every peer runs in processes of its own: its CPU is its own, and one that hangs or dies takes
//! nothing else with it.

mod ask;
mod figures;
mod payload;
mod peers;
mod process;
mod quiet;
mod rounds;
mod serve;
mod server;
mod show;
mod tally;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use rhizome_queue::Durability;
use serde_json::json;

use figures::{Missing, Round, median};
use peers::Kind;
use rounds::Size;
use show::Compared;

#[derive(Debug, Parser)]
#[command(about = "Compares Rhizome's queue with others on Redis")]
struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Rounds, of which the median is printed.
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Jobs per round; fewer where a peer cannot have so many.
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    jobs: usize,
    /// Jobs per round when every answer is on disk.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    durable_jobs: usize,
    /// Jobs that are dispatched one at a time; a third of it when every answer is on disk.
    #[arg(long, default_value_t = 900, value_name = "N")]
    single: usize,
    /// Compare only these.
    #[arg(long, value_delimiter = ',', value_name = "PEER,…")]
    only: Vec<Kind>,
    /// Leave out idle workers and recovery.
    #[arg(long)]
    no_quiet: bool,
    /// Leave out the setting with every answer on disk.
    #[arg(long)]
    no_durable: bool,
    /// Be the process of a peer.
    #[arg(long, hide = true, requires = "socket")]
    serve: Option<Kind>,
    #[arg(long, hide = true)]
    socket: Option<PathBuf>,
    #[arg(long, hide = true)]
    always: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    if let (Some(kind), Some(socket)) = (args.serve, &args.socket) {
        let durability = if args.always { Durability::Always } else { Durability::None };
        return serve::serve(kind, socket, durability).await;
    }
    ensure!(
        args.rounds > 0 && args.jobs > 0 && args.durable_jobs > 0 && args.single > 2,
        "numbers above 0 are needed"
    );
    let kinds = kinds(&args);
    let load = busy();
    if load > 0.5 {
        eprintln!(
            "the machine is busy (load {load}): rates and latencies will be worse than they are"
        );
    }
    let mut tables = vec![compare(&args, &kinds, Durability::None).await];
    if !args.no_durable {
        tables.push(compare(&args, &kinds, Durability::Always).await);
    }
    if !args.no_quiet {
        eprintln!("idle workers, and workers that die");
        let windows = quiet::Windows { count: args.rounds, length: Duration::from_secs(10) };
        for (kind, figures) in kinds.iter().zip(quiet::all(&kinds, windows).await) {
            tables[0].peers.entry(*kind).or_default().extend(figures);
        }
    }
    print(&args, &kinds, load, &tables);
    Ok(())
}

/// The load of the last minute; 0 where there is no way to know.
fn busy() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

fn kinds(args: &Args) -> Vec<Kind> {
    let mut kinds = if args.only.is_empty() { Kind::ALL.to_vec() } else { args.only.clone() };
    if kinds.contains(&Kind::BullmqNode)
        && let Some(why) = process::node_is_missing()
    {
        eprintln!("bullmq-node is left out: {why}");
        kinds.retain(|kind| *kind != Kind::BullmqNode);
    }
    kinds
}

async fn compare(args: &Args, kinds: &[Kind], durability: Durability) -> Compared {
    let size = match durability {
        Durability::Always => Size { jobs: args.durable_jobs, single: args.single / 3 },
        Durability::None | Durability::Everysec => Size { jobs: args.jobs, single: args.single },
    };
    let mut rounds: BTreeMap<Kind, Vec<Round>> = BTreeMap::new();
    for n in 0..args.rounds {
        // Nobody is always first.
        let mut order = kinds.to_vec();
        order.rotate_left(n % kinds.len().max(1));
        for kind in order {
            eprintln!("{durability:?}, round {} of {}: {}", n + 1, args.rounds, kind.name());
            let figures = rounds::round(kind, durability, size).await;
            for missing in figures.values().filter_map(|m| m.as_ref().err()) {
                let why = match missing {
                    Missing::TimedOut(limit) => format!("not within {} s", limit.as_secs()),
                    Missing::Failed(why) => why.clone(),
                };
                eprintln!("  {}: {why}", kind.name());
            }
            rounds.entry(kind).or_default().push(figures);
        }
    }
    let peers = rounds.into_iter().map(|(kind, rounds)| (kind, median(&rounds))).collect();
    Compared { durability, peers }
}

fn print(args: &Args, kinds: &[Kind], load: f64, tables: &[Compared]) {
    let versions = show::versions(kinds);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    if args.json {
        let tables: Vec<_> = tables.iter().map(Compared::json).collect();
        println!(
            "{:#}",
            json!({ "cores": cores, "load": load, "versions": versions, "tables": tables })
        );
        return;
    }
    let versions: Vec<String> = versions.iter().map(|(name, v)| format!("{name} {v}")).collect();
    println!("{cores} cores, load {load} before; {}\n", versions.join(", "));
    for table in tables {
        println!("{}", table.text());
    }
}
