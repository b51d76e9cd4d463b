//! `rhizome job`: one job with every attempt at it; doing it again, cancelling it.

use std::process::ExitCode;

use futures_util::future::join_all;
use jiff::tz::TimeZone;
use rhizome_model::api::JobView;
use rhizome_model::{Class, Code, Failure, JobId, JobState, NodeId};
use serde_json::json;

use crate::cli::Globals;
use crate::coord::{Coord, Session};
use crate::error::Error;
use crate::output;
use crate::render::queue;

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  rhizome job 0f4f5c0a6ad1b1c0a5e1c7e6d0a3b2c1\n  \
        rhizome job retry 0f4f5c0a6ad1b1c0a5e1c7e6d0a3b2c1"
)]
pub struct Args {
    #[command(flatten)]
    show: Option<Which>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// The job.
    #[arg(value_name = "ID")]
    id: JobId,
    /// The node that has it [default: all are asked].
    #[arg(long, value_name = "ID")]
    node: Option<NodeId>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show a job: every attempt, when, where, why it ended, and the last lines that it printed.
    Show(Which),
    /// Do a job that has ended again, under a new id.
    Retry(Which),
    /// Cancel a job and what it asked for.
    Cancel(Which),
    /// Do a job again that was set aside because its runners died under it.
    Release(Which),
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    let action = match (args.action, args.show) {
        (Some(action), _) => action,
        (None, Some(which)) => Action::Show(which),
        (None, None) => return Err(crate::error::misuse("which job? rhizome job ID").into()),
    };
    match action {
        Action::Show(which) => {
            show(&find(&coord, &which).await?, globals);
        }
        Action::Cancel(which) => {
            let job = find(&coord, &which).await?;
            show(&coord.cancel_job(job.node, job.id).await?, globals);
        }
        Action::Retry(which) => {
            let job = find(&coord, &which).await?;
            again(&coord, &job, globals).await?;
        }
        Action::Release(which) => {
            let job = find(&coord, &which).await?;
            if job.state != JobState::Quarantined {
                let message = format!(
                    "job {} is not in quarantine but {}; `rhizome job retry` does any job again that has ended",
                    job.id,
                    queue::state(job.state)
                );
                return Err(Failure::new(Code::Conflict, message).into());
            }
            again(&coord, &job, globals).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(job: &JobView, globals: &Globals) {
    if globals.json {
        output::json(job);
    } else {
        output::line(queue::job(job, &TimeZone::system()));
    }
}

async fn again(coord: &Coord, job: &JobView, globals: &Globals) -> Result<(), Failure> {
    let again = coord.job_again(job.node, job.id).await?;
    if globals.json {
        output::json(&json!({ "node": job.node, "id": again.id }));
    } else {
        output::line(format_args!("job {} does it again on node {}", again.id, job.node));
    }
    Ok(())
}

/// The job, from the node that has it. A node that is silent may be the one.
async fn find(coord: &Coord, which: &Which) -> Result<JobView, Failure> {
    if let Some(node) = which.node {
        return coord.job(node, which.id).await;
    }
    let nodes: Vec<_> = coord.nodes().await?.iter().map(|n| n.id).collect();
    let answers = join_all(nodes.iter().map(|node| coord.job(*node, which.id))).await;
    let (mut silent, mut refused) = (Vec::new(), None);
    for (node, answer) in nodes.iter().zip(answers) {
        match answer {
            Ok(job) => return Ok(job),
            Err(failure) if failure.code == Code::NotFound => {}
            Err(failure) if failure.code.class() == Class::Unreachable => {
                silent.push(format!("node {node}: {failure}"));
            }
            Err(failure) => refused = Some(failure),
        }
    }
    if let Some(failure) = refused {
        return Err(failure);
    }
    let id = which.id;
    if silent.is_empty() {
        let message = format!("no node has a job {id} of yours; what ended is kept for an hour");
        return Err(Failure::new(Code::NotFound, message));
    }
    let message = format!("no node that answers has a job {id}; some do not answer");
    Err(Failure::new(Code::Unavailable, message).with_detail(silent.join("\n")))
}
