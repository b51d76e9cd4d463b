//! `rhizome grant`: what an account may use of a closed farm.

use std::process::ExitCode;

use rhizome_model::statement::{Farm, Grant, GrantId};
use rhizome_model::{AccountId, Bytes, Capacity, Cpu, NodeId};
use rhizome_service::clock;
use serde_json::json;

use crate::cli::Globals;
use crate::error::Error;
use crate::ledger::Ledger;
use crate::output;
use crate::render::farm;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome grant give 7 --farm homefarm --cpu 2 --memory 4GiB --disk 50GiB --days 30\n  \
    rhizome grant list --farm homefarm\n  rhizome grant revoke 3 --farm homefarm")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Let an account use so much of each node of a farm, or of one.
    Give {
        account: AccountId,
        /// The farm's name or number.
        #[arg(long, value_name = "FARM")]
        farm: String,
        /// Of this node only.
        #[arg(long, value_name = "ID")]
        node: Option<NodeId>,
        #[arg(long, value_name = "N", value_parser = cpu)]
        cpu: Cpu,
        #[arg(long, value_name = "SIZE")]
        memory: Bytes,
        #[arg(long, value_name = "SIZE")]
        disk: Bytes,
        /// For so long; without it, until it is taken back.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        days: Option<u16>,
    },
    /// The grants of a farm that count.
    List {
        #[arg(long, value_name = "FARM")]
        farm: String,
    },
    /// Take a grant back. What runs goes on; nothing new is taken.
    Revoke {
        grant: GrantId,
        #[arg(long, value_name = "FARM")]
        farm: String,
    },
}

fn cpu(text: &str) -> Result<Cpu, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let ledger = Ledger::open(globals)?;
    let grants = match args.what {
        What::Give { account, farm, node, cpu, memory, disk, days } => {
            let id = ledger.farm(&farm).await?;
            let until = days.map(|days| clock::now_secs() + i64::from(days) * 86_400);
            let capacity = Capacity { cpu, memory, disk };
            let body =
                json!({ "account": account, "node": node, "capacity": capacity, "until": until });
            vec![ledger.post::<Grant>(&format!("/v2/farms/{id}/grants"), &body).await?]
        }
        What::List { farm } => {
            let id = ledger.farm(&farm).await?;
            ledger.get::<Farm>(&format!("/v2/farms/{id}")).await?.grants
        }
        What::Revoke { grant, farm } => {
            let id = ledger.farm(&farm).await?;
            ledger.delete::<Farm>(&format!("/v2/farms/{id}/grants/{grant}")).await?.grants
        }
    };
    if globals.json {
        output::json(&grants);
    } else if grants.is_empty() {
        output::line("no grants");
    } else {
        output::line(farm::grants(&grants));
    }
    Ok(ExitCode::SUCCESS)
}
