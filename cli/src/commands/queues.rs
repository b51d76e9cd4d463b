//! `rhizome queues`: how much waits, runs and failed, on each queue of each node.

use std::process::ExitCode;

use futures_util::future::join_all;
use rhizome_model::{Class, NodeId};
use serde_json::json;

use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;
use crate::render::node;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome queues --node 1")]
pub struct Args {
    /// Only of this node; can be repeated.
    #[arg(long, value_name = "ID")]
    pub node: Vec<NodeId>,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    let nodes = if args.node.is_empty() {
        coord.nodes().await?.iter().map(|n| n.id).collect()
    } else {
        args.node
    };
    let answers = join_all(nodes.iter().map(|node| coord.node_queues(*node))).await;
    let (mut queues, mut missing) = (Vec::new(), Vec::new());
    for (node, answer) in nodes.into_iter().zip(answers) {
        match answer {
            Ok(of_node) => queues.extend(of_node),
            Err(failure) if failure.code.class() == Class::Unreachable => {
                missing.push((node, failure));
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    if globals.json {
        let missing: Vec<_> =
            missing.iter().map(|(n, f)| json!({ "node": n, "error": f.message })).collect();
        output::json(&json!({ "queues": queues, "missing": missing }));
    } else {
        output::line(node::queues(&queues));
        for (node, failure) in &missing {
            output::note(format!("node {node} is missing: {failure}"));
        }
    }
    let all_there = missing.is_empty();
    Ok(if all_there { ExitCode::SUCCESS } else { ExitCode::from(Class::Unreachable.exit_code()) })
}
