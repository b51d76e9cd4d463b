//! `rhizome ledger`: accounts, farms, nodes, uptime.

use std::net::SocketAddr;
use std::process::ExitCode;

use rhizome_ledger::{DatabaseUrl, LedgerConfig};

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
    /// Where it keeps what it knows: sqlite:FILE, or postgres://USER:PASSWORD@HOST/NAME, which
    /// several ledgers may share [default: ledger.db in the state folder].
    #[arg(long, env = "RHIZOME_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Option<DatabaseUrl>,
    #[command(flatten)]
    common: Common,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let shutdown = args.common.shutdown()?;
    let database = match args.database {
        Some(url) => url,
        None => DatabaseUrl::sqlite(state_folder(&state_of("ledger", globals))?.join("ledger.db")),
    };
    let listener = rhizome_service::http::bind(args.listen).await?;
    let config = LedgerConfig { database, network: network_of(globals) };
    rhizome_ledger::run(config, listener, shutdown.token.clone()).await?;
    Ok(ExitCode::SUCCESS)
}
