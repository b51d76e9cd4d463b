//! `rhizome list`.

use std::process::ExitCode;

use jiff::tz::TimeZone;

use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;
use crate::render::deployment;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome list --all")]
pub struct Args {
    /// Deleted ones, too.
    #[arg(long)]
    pub all: bool,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let deployments = Session::open(globals)?.coord.deployments(args.all).await?;
    if globals.json {
        output::json(&deployments);
    } else if deployments.is_empty() {
        output::line("no deployments");
    } else {
        output::line(deployment::list(&deployments, &TimeZone::system()));
    }
    Ok(ExitCode::SUCCESS)
}
