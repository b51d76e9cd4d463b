//! `rhizome nodes`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use rhizome_identity::LedgerClient;
use rhizome_model::api::NodeView;
use rhizome_model::{Failure, NodeId};
use serde::Serialize;

use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;
use crate::render::node;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome nodes")]
pub struct Args {}

/// A node, as JSON shows it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    node: &'a NodeView,
    /// What it was up of the last 30 days, from 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    availability: Option<f64>,
}

pub async fn run(_: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let session = Session::open(globals)?;
    let nodes = session.coord.nodes().await?;
    // The ledger may be away, or not known here: the nodes are shown all the same.
    let shares = availability(&session).await.unwrap_or_default();
    if globals.json {
        let shown = |node| Shown { node, availability: shares.get(&node.id).copied() };
        output::json(&nodes.iter().map(shown).collect::<Vec<_>>());
    } else if nodes.is_empty() {
        output::line("no nodes");
    } else {
        output::line(node::list(&nodes, &shares));
    }
    Ok(ExitCode::SUCCESS)
}

async fn availability(session: &Session) -> Result<BTreeMap<NodeId, f64>, Failure> {
    let shares = LedgerClient::new(session.profile.ledger()?, None)?.availability().await?;
    Ok(shares.into_iter().filter_map(|share| Some((share.node_id, share.share?))).collect())
}
