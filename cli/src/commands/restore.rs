//! `rhizome restore`: brings a volume back to what a snapshot holds.

use std::process::ExitCode;

use rhizome_model::{Action, Name};

use crate::cli::Globals;
use crate::error::Error;
use crate::operation::{OperationArgs, perform};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    rhizome stop demo/web && rhizome restore demo/data monday && rhizome start demo/web")]
pub struct Args {
    #[command(flatten)]
    pub operation: OperationArgs,
    /// The snapshot. What the volume holds now is lost, unless another snapshot keeps it.
    pub snapshot: Name,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    perform(args.operation, Action::Restore { name: args.snapshot }, globals).await
}
