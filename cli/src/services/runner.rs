//! `rhizome runner`: one runner of a node.

use std::path::PathBuf;
use std::process::ExitCode;

use rhizome_model::SCRIPT_QUEUE;
use rhizome_runner::RunnerConfig;
use rhizome_sal::Sal;

use super::node_file::NodeFile;
use super::{Common, program, state_of};
use crate::cli::Globals;
use crate::error::Error;

/// Take jobs of queues and do them. The supervisor starts these; one by hand adds hands, but nobody
/// ends what it leaves behind.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome runner --queues machine --state /var/lib/rhizome/node")]
pub struct Args {
    /// The queues: script, the name of a workload kind, or that with -actions.
    #[arg(long, value_delimiter = ',', required = true, value_name = "QUEUE")]
    queues: Vec<String>,
    /// Jobs at a time.
    #[arg(long, default_value_t = 8, value_name = "N")]
    slots: usize,
    /// Unique per start [default: made up].
    #[arg(long)]
    name: Option<String>,
    /// Where outcomes wait that Redis cannot take [default: a folder of the node's state].
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let shutdown = args.common.shutdown()?;
    let state = state_of("node", globals);
    let node = NodeFile::read(&state)?;
    let program = program()?;
    // A runner of scripts makes nothing itself: it has no hold on the system.
    let needs_sal = args.queues.iter().any(|q| q != SCRIPT_QUEUE);
    let sal = if needs_sal {
        let open = Sal::open(node.sal(&state, program.clone())).await;
        Some(open.map_err(rhizome_model::Failure::from)?)
    } else {
        None
    };
    let name = args.name.unwrap_or_else(|| format!("hand-{}", uuid::Uuid::new_v4().simple()));
    let config = RunnerConfig {
        name,
        queue: node.queue(),
        queues: args.queues,
        slots: args.slots,
        facts: node.facts.clone(),
        sandbox: (program, vec!["sandbox".into()]),
        limits: node.limits,
        spool: Some(args.spool.unwrap_or_else(|| NodeFile::spool(&state))),
        identity: Some(NodeFile::identity_socket(&state)),
        sal,
    };
    Box::pin(rhizome_runner::run(config, shutdown)).await?;
    Ok(ExitCode::SUCCESS)
}
