//! `rhizome document`: what `deploy` would sign, for signing elsewhere.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::coord::Session;
use crate::document::{DocumentArgs, prepare};
use crate::error::Error;
use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    rhizome document demo.rhai --name demo | rhizome sign - | rhizome submit -")]
pub struct Args {
    #[command(flatten)]
    pub document: DocumentArgs,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let session = Session::open(globals)?;
    output::pretty_json(&prepare(&args.document, &session).await?);
    Ok(ExitCode::SUCCESS)
}
