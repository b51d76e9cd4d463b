//! `rhizome account`: the key's account at the ledger.

use std::process::ExitCode;

use clap::Subcommand;
use rhizome_identity::LedgerClient;
use rhizome_model::{Code, Failure};

use super::key;
use crate::cli::Globals;
use crate::error::Error;
use crate::output;
use crate::profile::Profile;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    rhizome key new && rhizome account register")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Register the key: it needs an account before its first deployment. Doing it again changes
    /// nothing.
    Register,
    /// Show the account of the key.
    Show,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let profile = Profile::load(globals)?;
    let ledger = LedgerClient::new(profile.ledger()?, None)?;
    let key = key::load(&profile.key)?;
    let id = key.key_id();
    let account = match args.what {
        What::Register => ledger.register_account(&key).await?,
        What::Show => ledger.account_by_key(&id).await?.ok_or_else(|| {
            Failure::new(
                Code::UnknownAccount,
                format!("no account has the key {id}: run `rhizome account register` first"),
            )
        })?,
    };
    if globals.json {
        output::json(&account);
    } else {
        output::line(format!("account  {}", account.id));
        output::line(format!("key id   {}", account.key));
    }
    Ok(ExitCode::SUCCESS)
}
