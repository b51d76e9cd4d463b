//! `rhizome coordinators`: who coordinates, and where.

use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_identity::SigningKey;
use rhizome_model::KeyId;
use rhizome_model::api::CoordinatorRegistration;
use rhizome_model::statement::Coordinator;

use super::key::refuse;
use crate::cli::Globals;
use crate::error::Error;
use crate::ledger::Ledger;
use crate::output;
use crate::render::table;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rhizome coordinators\n  \
    rhizome coordinators register --url https://coord.example \\\n      \
    --coord-key /var/lib/rhizome/coord/coord.key")]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Let others find a coordinator of yours.
    Register {
        /// Where it listens.
        #[arg(long)]
        url: String,
        /// The key file of the coordinator itself.
        #[arg(long, value_name = "PATH")]
        coord_key: PathBuf,
    },
    /// Take a coordinator back, for ever; farms that name it name it no longer.
    Withdraw { coordinator: KeyId },
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let ledger = Ledger::open(globals)?;
    let coordinators: Vec<Coordinator> = match args.what {
        None => ledger.get("/v2/coordinators").await?,
        Some(What::Register { url, coord_key }) => {
            let key = SigningKey::load(&coord_key).map_err(refuse)?;
            let account = ledger.account().await?;
            let claim = CoordinatorRegistration::claim(&ledger.network, account, &url);
            let proof = STANDARD.encode(key.sign(claim.as_bytes()));
            let path = format!("/v2/coordinators/{}", key.key_id());
            vec![ledger.put(&path, &CoordinatorRegistration { url, proof }).await?]
        }
        Some(What::Withdraw { coordinator }) => {
            vec![ledger.delete(&format!("/v2/coordinators/{coordinator}")).await?]
        }
    };
    if globals.json {
        output::json(&coordinators);
    } else if coordinators.is_empty() {
        output::line("no coordinators");
    } else {
        let rows = coordinators.iter().map(|c| {
            let state = if c.withdrawn { "withdrawn" } else { "registered" };
            [c.key.to_string(), c.account.to_string(), c.url.clone(), state.to_owned()]
        });
        output::line(table(["KEY", "ACCOUNT", "URL", "STATE"], rows));
    }
    Ok(ExitCode::SUCCESS)
}
