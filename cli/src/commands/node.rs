//! `rhizome node ID`: a node as coord sees it, and as it sees itself.

use std::process::ExitCode;

use rhizome_model::{Class, NodeId};
use serde_json::json;

use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;
use crate::render::node;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome node 1")]
pub struct Args {
    /// The node.
    pub id: NodeId,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    let (view, status) = tokio::join!(coord.node(args.id), coord.node_status(args.id));
    let view = view?;
    // A node that does not answer is worth showing; anything else is an error of ours or theirs.
    let (status, silence) = match status {
        Ok(status) => (Some(status), None),
        Err(failure) if failure.code.class() == Class::Unreachable => (None, Some(failure)),
        Err(failure) => return Err(failure.into()),
    };
    if globals.json {
        output::json(&json!({ "node": view, "status": status }));
    } else {
        output::line(node::show(&view, status.as_ref()));
        if let Some(silence) = silence {
            output::note(format!("its own view is missing: {silence}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
