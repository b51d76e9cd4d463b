//! `rhizome supervisor`: the supervisor of a node and its pools of runners.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use rhizome_identity::{LedgerClient, Statements, StatementsConfig};
use rhizome_model::{SCRIPT_QUEUE, WorkloadKind};
use rhizome_supervisor::{Pool, SupervisorConfig};

use super::node_file::NodeFile;
use super::{Common, program, state_of};
use crate::cli::Globals;
use crate::error::Error;

/// Scripts mostly wait for what they declare.
const SCRIPT_SLOTS: usize = 32;
const OPERATION_SLOTS: usize = 8;
/// Followed logs and commands that run.
const ACTION_SLOTS: usize = 64;

/// Verify, admit and enqueue deployments; run the node's runners. `rhizome node` starts this.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome supervisor --state /var/lib/rhizome/node")]
pub struct Args {
    #[command(flatten)]
    common: Common,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let shutdown = args.common.shutdown()?;
    let state = state_of("node", globals);
    let log = globals.log.as_deref().unwrap_or("info");
    let node = NodeFile::read(&state)?;
    let program = program()?;
    let listener = rhizome_service::http::bind(node.listen).await?;
    let ledger = LedgerClient::new(&node.ledger, None)?;
    let statements = StatementsConfig {
        folder: state.join("statements"),
        network: node.network.clone(),
        ledger_key: node.ledger_key,
    };
    let statements = Statements::load(ledger.clone(), statements)?;
    let groups = node.sal(&state, program.clone()).runner_groups();
    let groups = groups.inspect_err(|error| {
        tracing::warn!(%error, "without control groups only the process group of a dead runner ends");
    });
    let config = SupervisorConfig {
        groups: groups.ok(),
        identity: NodeFile::identity_socket(&state),
        spool: NodeFile::spool(&state),
        network_file: super::mycelium::network_file(&state),
        key: node.key,
        network: node.network.clone(),
        queue: node.queue(),
        statements: Arc::new(statements),
        ledger,
        coordinators: node.coordinators.clone(),
        pools: pools(&program, &state, log),
        sandbox: (program, vec!["sandbox".into()]),
        limits: node.limits,
        audit: state.join("audit.log"),
        facts: node.facts,
    };
    Box::pin(rhizome_supervisor::run(config, listener, shutdown.clone())).await?;
    shutdown.finish(std::time::Duration::from_secs(35)).await;
    Ok(ExitCode::SUCCESS)
}

/// One pool for scripts, one per kind, one for the actions of all kinds.
fn pools(program: &Path, state: &Path, log: &str) -> Vec<Pool> {
    let pool = |queues: Vec<String>, slots: usize| {
        let args = [
            "runner",
            "--lifeline",
            "--state",
            &state.to_string_lossy(),
            "--log",
            log,
            "--slots",
            &slots.to_string(),
            "--queues",
            &queues.join(","),
        ];
        let command = (program.to_owned(), args.map(str::to_owned).to_vec());
        Pool { queues, runners: 1, command }
    };
    let kinds = WorkloadKind::ALL.iter();
    let mut pools = vec![pool(vec![SCRIPT_QUEUE.into()], SCRIPT_SLOTS)];
    pools.extend(kinds.clone().map(|kind| pool(vec![kind.to_string()], OPERATION_SLOTS)));
    pools.push(pool(kinds.map(|kind| format!("{kind}-actions")).collect(), ACTION_SLOTS));
    pools
}
