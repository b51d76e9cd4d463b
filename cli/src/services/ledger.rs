//! `rhizome ledger`: accounts, farms, nodes, uptime.

use std::net::SocketAddr;
use std::process::ExitCode;

use rhizome_ledger::LedgerConfig;

use super::{Common, network_of, state_folder, state_of};
use crate::cli::Globals;
use crate::error::Error;

/// Serve the registry of accounts, farms and nodes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rhizome ledger --listen 127.0.0.1:8700 --state /var/lib/rhizome/ledger"
)]
pub struct Args {
    /// The address and port to listen on; port 0 takes a free one.
    #[arg(long, env = "RHIZOME_LISTEN", default_value = "127.0.0.1:8700", value_name = "ADDRESS")]
    listen: SocketAddr,
    #[command(flatten)]
    common: Common,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let shutdown = args.common.shutdown()?;
    let state = state_folder(&state_of("ledger", globals))?;
    let listener = rhizome_service::http::bind(args.listen).await?;
    let config = LedgerConfig { database: state.join("ledger.db"), network: network_of(globals) };
    rhizome_ledger::run(config, listener, shutdown.token.clone()).await?;
    Ok(ExitCode::SUCCESS)
}
