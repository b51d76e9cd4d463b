//! `rhizome show`.

use std::process::ExitCode;

use jiff::tz::TimeZone;

use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;
use crate::refs::DeploymentRef;
use crate::render::deployment;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome show demo")]
pub struct Args {
    /// The deployment: NAME, or ACCOUNT/NAME.
    pub name: DeploymentRef,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    let id = coord.resolve(&args.name).await?;
    let view = coord.deployment(&id).await?;
    if globals.json {
        output::json(&view);
    } else {
        output::line(deployment::show(&view, &TimeZone::system()));
    }
    Ok(ExitCode::SUCCESS)
}
