//! `rhizome snapshot`: keeps what a volume holds now under a name.

use std::process::ExitCode;

use rhizome_model::{Action, Name};

use crate::cli::Globals;
use crate::error::Error;
use crate::operation::{OperationArgs, perform};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rhizome snapshot demo/data monday\n  \
    rhizome snapshot demo/data monday --drop")]
pub struct Args {
    #[command(flatten)]
    pub operation: OperationArgs,
    /// What the snapshot is called.
    pub snapshot: Name,
    /// Forget the snapshot; that there is none is fine.
    #[arg(long)]
    pub drop: bool,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let name = args.snapshot;
    let action = if args.drop { Action::DropSnapshot { name } } else { Action::Snapshot { name } };
    perform(args.operation, action, globals).await
}
