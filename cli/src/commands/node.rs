//! `rhizome node ID`: a node as coord sees it, and as it sees itself.

use std::process::ExitCode;

use rhizome_model::{Class, NodeId};
use serde_json::json;

use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;
use crate::render::node;
use crate::services;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rhizome node 1\n  \
        rhizome node --ledger http://127.0.0.1:8700 --farm homefarm --redis /run/rhizome/redis.sock")]
pub struct Args {
    /// The node to show. Without one, this machine becomes a node.
    pub id: Option<NodeId>,
    #[command(flatten)]
    service: services::node::NodeOptions,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    match args.id {
        Some(id) => show(id, globals).await,
        None => Box::pin(services::node::run(args.service, globals)).await,
    }
}

async fn show(id: NodeId, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    let (view, status) = tokio::join!(coord.node(id), coord.node_status(id));
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
