//! `rhizome definitions`: the script API for editors.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::error::Error;
use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome definitions > rhizome.d.rhai")]
pub struct Args {}

pub async fn run(_: Args, _: &Globals) -> Result<ExitCode, Error> {
    output::line(rhizome_engine::definitions().trim_end());
    Ok(ExitCode::SUCCESS)
}
