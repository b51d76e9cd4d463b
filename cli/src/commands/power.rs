//! `rhizome start`, `stop` and `restart`: a machine, as a signed operation.

use std::process::ExitCode;

use rhizome_model::Action;

use crate::cli::Globals;
use crate::error::Error;
use crate::operation::{OperationArgs, perform};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome stop demo/web      it stays stopped, over restarts of the node too\n  \
    rhizome start demo/web\n  rhizome restart demo/web")]
pub struct Args {
    #[command(flatten)]
    pub operation: OperationArgs,
}

pub async fn run(args: Args, action: Action, globals: &Globals) -> Result<ExitCode, Error> {
    perform(args.operation, action, globals).await
}
