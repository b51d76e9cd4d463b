//! `rhizome queues`: how much waits, runs and failed, on each queue of each node.

use std::process::ExitCode;

use futures_util::future::join_all;
use rhizome_model::{Class, Code, Failure, NodeId};
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::coord::{Coord, Session};
use crate::error::Error;
use crate::output;
use crate::render::queue;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rhizome queues --node 1\n  rhizome queues --dead machine")]
pub struct Args {
    /// Only of this node; can be repeated.
    #[arg(long, value_name = "ID")]
    pub node: Vec<NodeId>,
    /// List the jobs of this queue that failed for good or are in quarantine, instead.
    #[arg(long, value_name = "QUEUE")]
    pub dead: Option<String>,
}

/// Nodes that did not answer, and why.
pub(super) type Silent = Vec<(NodeId, Failure)>;

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    if let Some(queue) = args.dead {
        return dead(&coord, args.node, &queue, globals).await;
    }
    let (answers, silent) = ask_all(&coord, args.node, |node| coord.node_queues(node)).await?;
    let queues: Vec<_> = answers.into_iter().flat_map(|(_, queues)| queues).collect();
    if globals.json {
        output::json(&json!({ "queues": queues, "missing": missing(&silent) }));
    } else {
        output::line(queue::queues(&queues));
    }
    Ok(end(&silent, globals))
}

async fn dead(
    coord: &Coord,
    nodes: Vec<NodeId>,
    queue: &str,
    globals: &Globals,
) -> Result<ExitCode, Error> {
    let (answers, silent) = ask_all(coord, nodes, |node| coord.dead(node, queue)).await?;
    let all =
        answers.into_iter().flat_map(|(node, jobs)| jobs.into_iter().map(move |id| (node, id)));
    if globals.json {
        let jobs: Vec<_> = all.map(|(node, id)| json!({ "node": node, "id": id })).collect();
        output::json(&json!({ "dead": jobs, "missing": missing(&silent) }));
    } else {
        for (node, id) in all {
            output::line(format_args!("{id} on node {node}"));
        }
    }
    Ok(end(&silent, globals))
}

/// Asks these nodes, or all that there are, at the same time. A refusal is an error; but of all
/// nodes, those of others are left out as long as there is another.
pub(super) async fn ask_all<T, F: Future<Output = Result<T, Failure>>>(
    coord: &Coord,
    nodes: Vec<NodeId>,
    ask: impl Fn(NodeId) -> F,
) -> Result<(Vec<(NodeId, T)>, Silent), Error> {
    let all = nodes.is_empty();
    let nodes = if all { coord.nodes().await?.iter().map(|n| n.id).collect() } else { nodes };
    let answers = join_all(nodes.iter().map(|node| ask(*node))).await;
    let (mut answered, mut silent, mut refused) = (Vec::new(), Vec::new(), None);
    for (node, answer) in nodes.into_iter().zip(answers) {
        match answer {
            Ok(answer) => answered.push((node, answer)),
            Err(failure) if failure.code.class() == Class::Unreachable => {
                silent.push((node, failure));
            }
            Err(failure) if all && failure.code == Code::Unauthorised => refused = Some(failure),
            Err(failure) => return Err(failure.into()),
        }
    }
    match refused {
        Some(failure) if answered.is_empty() && silent.is_empty() => Err(failure.into()),
        _ => Ok((answered, silent)),
    }
}

pub(super) fn missing(silent: &Silent) -> Vec<Value> {
    silent.iter().map(|(n, f)| json!({ "node": n, "error": f.message })).collect()
}

/// The exit code, and for people a word about who did not answer.
pub(super) fn end(silent: &Silent, globals: &Globals) -> ExitCode {
    if silent.is_empty() {
        return ExitCode::SUCCESS;
    }
    if !globals.json {
        for (node, failure) in silent {
            output::note(format_args!("node {node} is missing: {failure}"));
        }
    }
    ExitCode::from(Class::Unreachable.exit_code())
}
