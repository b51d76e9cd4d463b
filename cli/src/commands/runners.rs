//! `rhizome runners`: the pools of nodes; scaling, draining, pausing them.

use std::process::ExitCode;
use std::str::FromStr;

use rhizome_model::NodeId;
use rhizome_model::api::{PoolChange, PoolMode, PoolView};
use serde_json::json;

use super::queues::{ask_all, missing};
use crate::cli::Globals;
use crate::coord::{Coord, Session};
use crate::error::{Error, misuse};
use crate::output;
use crate::render::queue;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rhizome runners\n  rhizome runners scale volume=3 machine=2\n  \
        rhizome runners drain machine --node 1"
)]
pub struct Args {
    /// Only of this node. To change something where there are several nodes, say which.
    #[arg(long, value_name = "ID", global = true)]
    node: Option<NodeId>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Set how many runners serve a queue; 0 drains it, another number ends a drain.
    Scale {
        #[arg(required = true, value_name = "QUEUE=N")]
        pools: Vec<Scale>,
    },
    /// Let the runners of queues end what they have, and stop them.
    Drain(Queues),
    /// Have the runners of queues start nothing new.
    Pause(Queues),
    /// Have the runners of queues take jobs again.
    Resume(Queues),
}

#[derive(Debug, clap::Args)]
struct Queues {
    /// The queues [default: all].
    #[arg(value_name = "QUEUE")]
    queues: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Scale {
    queue: String,
    runners: usize,
}

impl FromStr for Scale {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parts = s.split_once('=').filter(|(queue, _)| !queue.is_empty());
        let parsed = parts.and_then(|(queue, n)| Some((queue, n.parse().ok()?)));
        let (queue, runners) =
            parsed.ok_or_else(|| "write QUEUE=N, for example volume=3".to_owned())?;
        Ok(Self { queue: queue.to_owned(), runners })
    }
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    let (queues, mode) = match args.action {
        None => return list(&coord, args.node, globals).await,
        Some(Action::Scale { pools }) => {
            let change = |s: Scale| (s.queue, PoolChange { mode: None, scale: Some(s.runners) });
            let changes = pools.into_iter().map(change).collect();
            return change_all(&coord, args.node, changes, globals).await;
        }
        Some(Action::Drain(Queues { queues })) => (queues, PoolMode::Drained),
        Some(Action::Pause(Queues { queues })) => (queues, PoolMode::Paused),
        Some(Action::Resume(Queues { queues })) => (queues, PoolMode::Running),
    };
    let node = only(&coord, args.node).await?;
    let queues = if queues.is_empty() {
        // One queue stands for its pool.
        let pools = coord.runners(node).await?;
        pools.into_iter().filter_map(|p| p.queues.into_iter().next()).collect()
    } else {
        queues
    };
    let change = PoolChange { mode: Some(mode), scale: None };
    let changes = queues.into_iter().map(|queue| (queue, change)).collect();
    change_all(&coord, Some(node), changes, globals).await
}

async fn list(coord: &Coord, node: Option<NodeId>, globals: &Globals) -> Result<ExitCode, Error> {
    let nodes = Vec::from_iter(node);
    let (answers, silent) = ask_all(coord, nodes, |node| coord.runners(node)).await?;
    let pools: Vec<_> = answers
        .into_iter()
        .flat_map(|(node, pools)| pools.into_iter().map(move |p| (node, p)))
        .collect();
    if globals.json {
        output::json(&json!({ "pools": as_json(&pools), "missing": missing(&silent) }));
    } else {
        output::line(queue::pools(&pools));
    }
    Ok(super::queues::end(&silent, globals))
}

async fn change_all(
    coord: &Coord,
    node: Option<NodeId>,
    changes: Vec<(String, PoolChange)>,
    globals: &Globals,
) -> Result<ExitCode, Error> {
    let node = only(coord, node).await?;
    let mut pools: Vec<(NodeId, PoolView)> = Vec::new();
    for (queue, change) in changes {
        let pool = coord.change_runners(node, &queue, &change).await?;
        pools.retain(|(_, p)| p.queues != pool.queues);
        pools.push((node, pool));
    }
    if globals.json {
        output::json(&json!({ "pools": as_json(&pools), "missing": [] }));
    } else {
        output::line(queue::pools(&pools));
    }
    Ok(ExitCode::SUCCESS)
}

/// The node that was named, or the only one.
pub(super) async fn only(coord: &Coord, node: Option<NodeId>) -> Result<NodeId, Error> {
    if let Some(node) = node {
        return Ok(node);
    }
    match coord.nodes().await?.as_slice() {
        [only] => Ok(only.id),
        [] => Err(misuse("there is no node").into()),
        several => {
            let ids: Vec<_> = several.iter().map(|n| n.id.to_string()).collect();
            Err(misuse(format!("say which node: --node with one of {}", ids.join(", "))).into())
        }
    }
}

fn as_json(pools: &[(NodeId, PoolView)]) -> Vec<serde_json::Value> {
    let pool = |(node, pool): &(NodeId, PoolView)| {
        json!({
            "node": node, "queues": pool.queues, "mode": pool.mode, "scale": pool.scale,
            "runners": pool.runners,
        })
    };
    pools.iter().map(pool).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_queue_and_a_number() {
        let scale = Scale { queue: "volume".into(), runners: 3 };
        assert_eq!("volume=3".parse(), Ok(scale));
        for wrong in ["volume", "=3", "volume=", "volume=-1", "volume=many"] {
            assert!(wrong.parse::<Scale>().is_err(), "{wrong}");
        }
    }
}
