//! `rhizome farm`: whom a farm is open to, its nodes, and who may follow them.

use std::process::ExitCode;

use rhizome_model::api::LedgerNodeView;
use rhizome_model::statement::{Farm, FarmAccess};
use rhizome_model::{FarmId, KeyId, NodeId};
use serde_json::json;

use crate::cli::Globals;
use crate::error::Error;
use crate::ledger::Ledger;
use crate::output;
use crate::render::farm;

/// The ledger gives no more rows at a time.
const PAGE: usize = 1000;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rhizome farm show homefarm\n  rhizome farm close homefarm\n  \
        rhizome farm nodes homefarm\n  rhizome farm approve 7"
)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Whom it is open to, its grants, the coordinators that may follow its nodes.
    Show {
        /// Its name or its number.
        farm: String,
    },
    /// Let every account deploy on its nodes.
    Open { farm: String },
    /// Let only yourself deploy, and who has a grant. What runs goes on.
    Close { farm: String },
    /// List its nodes, also those that nobody has approved of.
    Nodes { farm: String },
    /// Say that a node belongs in your farm: placements by number choose such nodes only.
    Approve { node: NodeId },
    /// Take that back.
    Disapprove { node: NodeId },
    /// Let a registered coordinator follow all tasks of its nodes.
    Trust { farm: String, coordinator: KeyId },
    /// Take that back.
    Distrust { farm: String, coordinator: KeyId },
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let ledger = Ledger::open(globals)?;
    let farm = match args.what {
        What::Show { farm } => {
            let id = ledger.farm(&farm).await?;
            ledger.get(&format!("/v2/farms/{id}")).await?
        }
        What::Open { farm } => set_access(&ledger, &farm, FarmAccess::Open).await?,
        What::Close { farm } => set_access(&ledger, &farm, FarmAccess::Closed).await?,
        What::Trust { farm, coordinator } => {
            let id = ledger.farm(&farm).await?;
            ledger.put(&format!("/v2/farms/{id}/coordinators/{coordinator}"), &json!({})).await?
        }
        What::Distrust { farm, coordinator } => {
            let id = ledger.farm(&farm).await?;
            ledger.delete(&format!("/v2/farms/{id}/coordinators/{coordinator}")).await?
        }
        What::Nodes { farm } => {
            let nodes = all_nodes(&ledger, ledger.farm(&farm).await?).await?;
            return Ok(show_nodes(&nodes, globals));
        }
        What::Approve { node } => return approve(&ledger, node, true, globals).await,
        What::Disapprove { node } => return approve(&ledger, node, false, globals).await,
    };
    show(&farm, globals);
    Ok(ExitCode::SUCCESS)
}

async fn set_access(ledger: &Ledger, farm: &str, access: FarmAccess) -> Result<Farm, Error> {
    let id = ledger.farm(farm).await?;
    Ok(ledger.put(&format!("/v2/farms/{id}/access"), &json!({ "access": access })).await?)
}

async fn approve(
    ledger: &Ledger,
    node: NodeId,
    approved: bool,
    globals: &Globals,
) -> Result<ExitCode, Error> {
    let path = format!("/v2/nodes/{node}/approval");
    let node: LedgerNodeView = ledger.put(&path, &json!({ "approved": approved })).await?;
    Ok(show_nodes(&[node], globals))
}

async fn all_nodes(ledger: &Ledger, farm: FarmId) -> Result<Vec<LedgerNodeView>, Error> {
    let mut nodes = Vec::new();
    for page in 1.. {
        let path = format!("/v2/nodes?farm={farm}&page={page}&size={PAGE}");
        let part: Vec<LedgerNodeView> = ledger.get(&path).await?;
        let last = part.len() < PAGE;
        nodes.extend(part);
        if last {
            break;
        }
    }
    Ok(nodes)
}

fn show_nodes(nodes: &[LedgerNodeView], globals: &Globals) -> ExitCode {
    if globals.json {
        output::json(&nodes);
    } else if nodes.is_empty() {
        output::line("no nodes");
    } else {
        output::line(farm::nodes(nodes));
    }
    ExitCode::SUCCESS
}

fn show(farm: &Farm, globals: &Globals) {
    if globals.json {
        output::json(farm);
    } else {
        output::line(farm::show(farm));
    }
}
