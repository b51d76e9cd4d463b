//! `rhizome node identity`: the identity of the node on this machine, looked at, taken along, brought
//! back.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use rhizome_identity::manager::{
    Copy, IdentityError, Kept, Lock, MAX_EXPORT_BYTES, Opened, Unlock, export, import,
};
use rhizome_model::{Code, Failure};
use serde_json::json;
use zeroize::Zeroizing;

use super::key::{PASSPHRASE_VARIABLE, from_variable};
use crate::cli::Globals;
use crate::error::{Error, internal, misuse};
use crate::output;
use crate::services::identity::{IdentityPlaces, TpmChoice};
use crate::services::node_file::NodeFile;
use crate::services::{state_folder, state_of};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome node identity export > node.age\n  \
    rhizome node identity export --recipient age1… > node.age\n  \
    rhizome node identity import node.age")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the identity, encrypted: an age file.
    ///
    /// The passphrase is asked for, or taken from RHIZOME_PASSPHRASE.
    Export {
        /// Encrypt to this key instead, which `age-keygen` printed.
        #[arg(long, value_name = "AGE1…")]
        recipient: Option<String>,
        /// Write a new file instead.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        places: IdentityPlaces,
    },
    /// Make an exported identity this machine's. The node must not run.
    Import {
        /// The export; - reads standard input.
        file: PathBuf,
        /// The age identity that opens it, where it is not a passphrase.
        #[arg(long, value_name = "FILE")]
        age_identity: Option<PathBuf>,
        /// Where no identity can be used, move aside what is there.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        places: IdentityPlaces,
    },
    /// Show whose it is and where its copies are.
    Show {
        #[command(flatten)]
        places: IdentityPlaces,
    },
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let state = state_of("node", globals);
    match args.what {
        What::Export { recipient, output, places } => {
            let kept = open_at(&state, &places)?;
            let lock = match recipient {
                Some(recipient) => Lock::Recipient(recipient),
                None => Lock::Passphrase(new_passphrase()?),
            };
            let text = export(&kept, &lock)?;
            match output {
                Some(path) => write_new(&path, &text)?,
                None => output::line(text.trim_end()),
            }
        }
        What::Import { file, age_identity, replace, places } => {
            let text = super::read_input(&file, MAX_EXPORT_BYTES)?;
            let unlock = match age_identity {
                Some(path) => Unlock::Identity(read_secret(&path)?),
                None => Unlock::Passphrase(passphrase("Passphrase of the export: ")?),
            };
            let exported = import(&text, &unlock)?;
            not_running(&state)?;
            let store = places.store(&state_folder(&state)?);
            if replace {
                store.set_aside()?;
            }
            let kept = match store.open()? {
                Opened::Never(store) => {
                    store.create(exported.key, &exported.serial_number, exported.registered)?
                }
                Opened::Known(kept) if kept.key_id() == exported.key.key_id() => kept,
                Opened::Known(kept) => return Err(IdentityError::Exists(kept.key_id()).into()),
            };
            show(&kept, globals);
        }
        What::Show { places } => show(&open_at(&state, &places)?, globals),
    }
    Ok(ExitCode::SUCCESS)
}

/// The identity of the node with this state folder, as far as the folder itself holds it.
pub fn open(state: &Path) -> Result<Kept, Failure> {
    open_at(state, &IdentityPlaces { state_pools: Vec::new(), tpm: TpmChoice::Auto })
}

fn open_at(state: &Path, places: &IdentityPlaces) -> Result<Kept, Failure> {
    match places.store(state).open()? {
        Opened::Known(kept) => Ok(kept),
        Opened::Never(_) => Err(Failure::new(
            Code::NotFound,
            format!("there is no node's identity in {}: give --state DIR", state.display()),
        )),
    }
}

fn show(kept: &Kept, globals: &Globals) {
    let places: Vec<(String, Option<String>)> = kept
        .heal()
        .into_iter()
        .map(|(path, copy)| {
            let problem = match copy {
                Copy::Valid(_) => None,
                Copy::Absent => Some("missing".into()),
                Copy::Away(why) | Copy::Broken(why) => Some(why),
            };
            (path.display().to_string(), problem)
        })
        .collect();
    if globals.json {
        let copies: Vec<_> = places
            .iter()
            .map(|(path, problem)| json!({ "path": path, "problem": problem }))
            .collect();
        output::json(&json!({
            "key": kept.key_id(),
            "mycelium_address": kept.key().mycelium_address(),
            "serial_number": kept.serial_number(),
            "sealed": kept.is_sealed(),
            "registered": kept.registered(),
            "copies": copies,
        }));
        return;
    }
    output::line(format!("key id            {}", kept.key_id()));
    output::line(format!("mycelium address  {}", kept.key().mycelium_address()));
    output::line(format!("serial number     {}", crate::render::clean(kept.serial_number())));
    output::line(format!("sealed to a TPM   {}", if kept.is_sealed() { "yes" } else { "no" }));
    if let Some(registered) = kept.registered() {
        let (node, farm) = (registered.node, registered.farm);
        output::line(format!("registered        node {node} of farm {farm}"));
    }
    for (path, problem) in places {
        let state = problem.as_deref().unwrap_or("good");
        output::line(format!("copy              {path}: {state}"));
    }
}

/// A manager that runs would write its own identity over an imported one.
fn not_running(state: &Path) -> Result<(), Failure> {
    let socket = NodeFile::identity_socket(state);
    if UnixStream::connect(&socket).is_ok() {
        let message = "the node runs: stop it before its identity is imported";
        return Err(Failure::new(Code::Conflict, message));
    }
    Ok(())
}

fn new_passphrase() -> Result<Zeroizing<String>, Failure> {
    if let Some(known) = from_variable() {
        return Ok(known);
    }
    let first = passphrase("Passphrase for the export: ")?;
    if *passphrase("The same again: ")? == *first {
        Ok(first)
    } else {
        Err(misuse("the two passphrases differ"))
    }
}

fn passphrase(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    if let Some(known) = from_variable() {
        return Ok(known);
    }
    rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|e| {
        misuse(format!("nobody can be asked for the passphrase ({e}): set {PASSPHRASE_VARIABLE}"))
    })
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>, Failure> {
    String::from_utf8(super::read_input(path, MAX_EXPORT_BYTES)?)
        .map(Zeroizing::new)
        .map_err(|_| misuse(format!("{} is not text", path.display())))
}

fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let mut options = std::fs::OpenOptions::new();
    options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(|e| internal(&format!("cannot write {}", path.display()), &e))
}
