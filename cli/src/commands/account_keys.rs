//! `rhizome key rotate | add | revoke | threshold | history`: the keys of an account.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rhizome_identity::{SigningKey, UserKey};
use rhizome_model::statement::{Account, KeyChange, KeyDocument, payload_type};
use rhizome_model::{Failure, KeyId};
use rhizome_service::clock;

use super::key::refuse;
use crate::cli::Globals;
use crate::error::{Error, internal};
use crate::ledger::Ledger;
use crate::output;
use crate::render::table;

/// A change of keys is sent as soon as it is signed.
const LIFETIME_SECS: i64 = 600;

/// What shall become of the keys.
#[derive(Debug)]
pub enum Wanted {
    Rotate { new: PathBuf },
    Add { file: PathBuf, weight: u32 },
    Revoke { key: KeyId, with: Vec<PathBuf> },
    Threshold { weight: u32, with: Vec<PathBuf> },
    History,
}

pub async fn run(wanted: Wanted, globals: &Globals) -> Result<ExitCode, Error> {
    let ledger = Ledger::open(globals)?;
    let own = ledger.key.key_id();
    let (change, others, hint) = match wanted {
        Wanted::Rotate { new } => {
            let key = SigningKey::load_or_new(&new).map_err(refuse)?;
            let change = KeyChange::Rotate { old: own, new: key.key_id() };
            let hint = format!("sign with --key {} from now on", new.display());
            (change, vec![key], Some(hint))
        }
        Wanted::Add { file, weight } => {
            let key = SigningKey::load_or_new(&file).map_err(refuse)?;
            (KeyChange::Add { key: key.key_id(), weight }, vec![key], None)
        }
        Wanted::Revoke { key, with } => (KeyChange::Revoke { key }, load(&with)?, None),
        Wanted::Threshold { weight, with } => (KeyChange::Threshold { weight }, load(&with)?, None),
        Wanted::History => {
            let id = ledger.account().await?;
            show(&ledger.get(&format!("/v2/accounts/{id}")).await?, globals);
            return Ok(ExitCode::SUCCESS);
        }
    };
    let account = send(&ledger, change, &others).await?;
    show(&account, globals);
    if let Some(hint) = hint {
        output::note(hint);
    }
    Ok(ExitCode::SUCCESS)
}

async fn send(ledger: &Ledger, change: KeyChange, others: &[SigningKey]) -> Result<Account, Error> {
    let id = ledger.account().await?;
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|e| internal("no random numbers", &e))?;
    let document = KeyDocument {
        network: ledger.network.clone(),
        account: id,
        change,
        expires: clock::now_secs() + LIFETIME_SECS,
        nonce: URL_SAFE_NO_PAD.encode(random),
    };
    let payload =
        serde_json::to_vec(&document).map_err(|e| internal("cannot write the change", &e))?;
    let mut envelope = ledger.key.sign_envelope(payload_type::KEYS, &payload).map_err(refuse)?;
    for key in others {
        UserKey::from(key.clone()).add_signature(&mut envelope).map_err(refuse)?;
    }
    Ok(ledger.post_envelope(&format!("/v2/accounts/{id}/keys"), envelope.to_json()).await?)
}

fn load(files: &[PathBuf]) -> Result<Vec<SigningKey>, Failure> {
    let load = |path: &PathBuf| SigningKey::load(Path::new(path)).map_err(refuse);
    files.iter().map(load).collect()
}

fn show(account: &Account, globals: &Globals) {
    if globals.json {
        output::json(account);
        return;
    }
    let rows = account.keys.iter().map(|key| {
        let state = key.ended.map_or("active", |end| match end.how {
            rhizome_model::statement::KeyEnding::Rotated => "rotated",
            rhizome_model::statement::KeyEnding::Revoked => "revoked",
        });
        [key.key.to_string(), state.to_owned(), key.weight.to_string()]
    });
    let (id, threshold) = (account.id, account.threshold);
    output::line(format!("account {id}; a change of its keys needs the weight {threshold}"));
    output::line(table(["KEY", "STATE", "WEIGHT"], rows));
}
