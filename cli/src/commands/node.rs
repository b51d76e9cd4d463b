//! `rhizome node ID`: a node as coord sees it, and as it sees itself.

use std::process::ExitCode;

use clap::Subcommand;
use rhizome_model::api::NodeIdentity;
use rhizome_model::{Class, Code, Failure, NodeId};
use rhizome_service::Client;
use serde_json::json;

use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;
use crate::render::node;
use crate::services;
use crate::services::node_file::NodeFile;

use super::identity;

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  rhizome node 1\n  \
        rhizome node --ledger http://127.0.0.1:8700 --farm homefarm --redis /run/rhizome/redis.sock\n  \
        rhizome node --status\n  \
        rhizome node identity export > node.age"
)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// The node to show. Without one, this machine becomes a node.
    pub id: Option<NodeId>,
    /// How the node on this machine is: who it is, whether the ledger knows it, and if not, why.
    #[arg(long, conflicts_with = "id")]
    status: bool,
    #[command(flatten)]
    service: services::node::NodeOptions,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The identity of the node on this machine: show, export, import.
    Identity(identity::Args),
}

impl Args {
    pub fn is_service(&self) -> bool {
        self.what.is_none() && self.id.is_none() && !self.status
    }
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    match (args.what, args.id) {
        (Some(What::Identity(what)), _) => identity::run(what, globals).await,
        (None, Some(id)) => show(id, globals).await,
        (None, None) if args.status => status(globals).await,
        (None, None) => Box::pin(services::node::run(args.service, globals)).await,
    }
}

/// Asks the identity manager of this machine. What is wrong is exit code 1.
async fn status(globals: &Globals) -> Result<ExitCode, Error> {
    let socket = NodeFile::identity_socket(&services::state_of("node", globals));
    let place = socket.display().to_string();
    let asked = Client::unix("identity manager", socket)?.get::<NodeIdentity>("/v1/identity").await;
    let identity = asked.map_err(|failure| match failure.code {
        Code::Unavailable => Failure::new(
            Code::Unavailable,
            format!("no node runs here: nobody answers at {place}; its log says why it stopped"),
        ),
        _ => failure,
    })?;
    if globals.json {
        output::json(&identity);
    } else {
        output::line(node::identity(&identity));
    }
    let well = identity.problem.is_none() && identity.registered.is_some();
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(Class::Failed.exit_code()) })
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
