//! `rhizome nodes`.

use std::process::ExitCode;

use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;
use crate::render::node;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome nodes")]
pub struct Args {}

pub async fn run(_: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let nodes = Session::open(globals)?.coord.nodes().await?;
    if globals.json {
        output::json(&nodes);
    } else if nodes.is_empty() {
        output::line("no nodes");
    } else {
        output::line(node::list(&nodes));
    }
    Ok(ExitCode::SUCCESS)
}
