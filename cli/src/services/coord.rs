//! `rhizome coord`: takes envelopes and follows them to their end.

use std::net::SocketAddr;
use std::process::ExitCode;

use rhizome_coord::CoordConfig;
use rhizome_identity::SigningKey;
use rhizome_model::Failure;

use super::{Common, LedgerKey, ledger_of, network_of, state_folder, state_of};
use crate::cli::Globals;
use crate::commands::key::refuse;
use crate::error::Error;

/// Take signed envelopes, route them to nodes and follow them to their end.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rhizome coord --listen 127.0.0.1:8800 --ledger http://127.0.0.1:8700 \\\n      --state /var/lib/rhizome/coord"
)]
pub struct Args {
    /// The address and port to listen on; port 0 takes a free one.
    #[arg(long, env = "RHIZOME_LISTEN", default_value = "127.0.0.1:8800", value_name = "ADDRESS")]
    listen: SocketAddr,
    #[command(flatten)]
    ledger_key: LedgerKey,
    #[command(flatten)]
    common: Common,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let shutdown = args.common.shutdown()?;
    let state = state_folder(&state_of("coord", globals))?;
    let key = load_or_make_key(&state.join("coord.key"))?;
    tracing::info!(key = %key.key_id(), "supervisors that name this key let us follow their tasks");
    let listener = rhizome_service::http::bind(args.listen).await?;
    let config = CoordConfig {
        database: state.join("coord.db"),
        ledger: ledger_of(globals)?,
        ledger_key: args.ledger_key.ledger_key,
        statements: state.join("statements"),
        network: network_of(globals),
        key,
    };
    Box::pin(rhizome_coord::run(config, listener, shutdown)).await?;
    Ok(ExitCode::SUCCESS)
}

/// A key file of ours; made where there is none.
pub fn load_or_make_key(path: &std::path::Path) -> Result<SigningKey, Failure> {
    if path.exists() {
        return SigningKey::load(path).map_err(refuse);
    }
    let key = SigningKey::generate().map_err(refuse)?;
    key.save_new(path).map_err(refuse)?;
    Ok(key)
}
