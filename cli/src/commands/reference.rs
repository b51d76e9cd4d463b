//! `rhizome reference`: the script API for people.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::error::Error;
use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome reference > docs/scripts.md")]
pub struct Args {}

pub async fn run(_: Args, _: &Globals) -> Result<ExitCode, Error> {
    output::line(rhizome_engine::reference().trim_end());
    Ok(ExitCode::SUCCESS)
}
