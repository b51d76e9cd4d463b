//! `rhizome key`: makes, shows and imports the key that signs.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use rhizome_identity::agent::{AgentError, AgentKey};
use rhizome_identity::{KeyError, SigningKey, UserKey, mycelium_address};
use rhizome_model::{Code, Failure, KeyId};
use serde_json::json;
use zeroize::Zeroizing;

use super::account_keys::{Wanted, run as change};
use crate::cli::Globals;
use crate::error::{Error, internal, misuse};
use crate::output;
use crate::profile::{KeyChoice, Profile, default_key};

/// Opens an encrypted OpenSSH key where nobody can be asked.
pub const PASSPHRASE_VARIABLE: &str = "RHIZOME_PASSPHRASE";
/// No private key and no list of words is longer.
const MAX_INPUT: usize = 64 << 10;
/// 24 words.
const ENTROPY_BYTES: usize = 32;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome key new\n  \
    rhizome key import ~/.ssh/id_ed25519\n  \
    rhizome key import --words < words.txt\n  \
    rhizome key show\n  \
    rhizome key rotate ~/.config/rhizome/key.2")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a key. A file that is there already is never replaced.
    New {
        /// Derive it from 24 new words, and show them once: they are the key's backup.
        #[arg(long)]
        words: bool,
    },
    /// Show the public half.
    Show,
    /// Take over a key that exists: an OpenSSH Ed25519 private key, or words.
    ///
    /// The passphrase of an encrypted key is asked for, or taken from RHIZOME_PASSPHRASE; so is
    /// the password of words, which is empty without that variable.
    Import {
        /// The OpenSSH private key; - reads standard input.
        #[arg(required_unless_present = "words", conflicts_with = "words")]
        file: Option<PathBuf>,
        /// Read 12 to 24 BIP-39 words from standard input.
        #[arg(long)]
        words: bool,
    },
    /// Put another key in the place of this one at the ledger. Both sign.
    Rotate {
        /// The file with the new key; made where there is none.
        new: PathBuf,
    },
    /// Give the account one more key.
    Add {
        /// The file with that key; made where there is none.
        file: PathBuf,
        /// What it weighs when keys are changed.
        #[arg(long, default_value_t = 1, value_name = "N")]
        weight: u32,
    },
    /// Have a key of the account count no longer, for ever.
    Revoke {
        // Not `key`: that is the global option.
        #[arg(value_name = "KEY")]
        revoked: KeyId,
        /// The file of another key that signs as well. Can be repeated.
        #[arg(long, value_name = "PATH")]
        with: Vec<PathBuf>,
    },
    /// Say what the keys that sign a change of keys must weigh together.
    Threshold {
        weight: u32,
        /// The file of another key that signs as well. Can be repeated.
        #[arg(long, value_name = "PATH")]
        with: Vec<PathBuf>,
    },
    /// Show the keys that the account has and had.
    History,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    match args.what {
        What::New { words } => {
            let path = free_path(globals)?;
            let phrase = if words { Some(new_words()?) } else { None };
            let key = match &phrase {
                Some(phrase) => SigningKey::from_mnemonic(phrase, ""),
                None => SigningKey::generate(),
            };
            save(&key.map_err(refuse)?, &path, globals)?;
            if let Some(phrase) = phrase {
                output::note("Write these words down; they are shown this once:");
                output::note(phrase.as_str());
            }
        }
        What::Show => {
            let choice = Profile::load(globals)?.key;
            let place = match &choice {
                KeyChoice::File(path) => path.display().to_string(),
                KeyChoice::Agent(_) => "the ssh-agent".into(),
                KeyChoice::Node(state) => {
                    format!("the identity of the node in {}", state.display())
                }
            };
            show(&load(&choice)?.key_id(), &place, globals);
        }
        What::Import { file, .. } => {
            let path = free_path(globals)?;
            let key = match file {
                Some(file) => import_openssh(&file)?,
                None => import_words()?,
            };
            save(&key, &path, globals)?;
        }
        What::Rotate { new } => return change(Wanted::Rotate { new }, globals).await,
        What::Add { file, weight } => return change(Wanted::Add { file, weight }, globals).await,
        What::Revoke { revoked: key, with } => {
            return change(Wanted::Revoke { key, with }, globals).await;
        }
        What::Threshold { weight, with } => {
            return change(Wanted::Threshold { weight, with }, globals).await;
        }
        What::History => return change(Wanted::History, globals).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// The key that signs, or what to do to have one.
pub fn load(choice: &KeyChoice) -> Result<UserKey, Failure> {
    match choice {
        KeyChoice::File(path) => load_file(path).map(Into::into),
        KeyChoice::Agent(wanted) => {
            AgentKey::find(wanted).map(Into::into).map_err(|e| refuse(e.into()))
        }
        KeyChoice::Node(state) => {
            super::identity::open(state).map(|kept| kept.key().clone().into())
        }
    }
}

fn load_file(path: &Path) -> Result<SigningKey, Failure> {
    SigningKey::load(path).map_err(|e| match e {
        KeyError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            misuse(format!(
                "there is no key at {}: make one with `rhizome key new`, or give --key PATH",
                path.display()
            ))
        }
        other => refuse(other),
    })
}

pub fn refuse(error: KeyError) -> Failure {
    match error {
        KeyError::Random(_) | KeyError::File { .. } => {
            Failure::new(Code::Internal, error.to_string())
        }
        KeyError::Weak(_)
        | KeyError::Mismatch
        | KeyError::Exposed { .. }
        | KeyError::Foreign { .. }
        | KeyError::Malformed { .. }
        | KeyError::SshSig(_)
        | KeyError::Import(_) => misuse(error.to_string()),
        KeyError::Agent(AgentError::NotNamed | AgentError::Away { .. }) => {
            Failure::new(Code::AgentUnavailable, error.to_string())
        }
        KeyError::Agent(AgentError::Refused { .. }) => {
            Failure::new(Code::AgentRefused, error.to_string())
        }
        KeyError::Agent(
            AgentError::Answer
            | AgentError::NoSuchKey { .. }
            | AgentError::Ambiguous { .. }
            | AgentError::BadSignature { .. },
        ) => Failure::new(Code::NoSuchKey, error.to_string()),
    }
}

/// Where a new key goes; refused before anything secret is made or asked for.
fn free_path(globals: &Globals) -> Result<PathBuf, Failure> {
    let path = match &globals.key {
        Some(KeyChoice::File(path)) => path.clone(),
        Some(KeyChoice::Agent(_) | KeyChoice::Node(_)) => {
            return Err(misuse("a key is made in a file: give --key PATH"));
        }
        None => default_key()?,
    };
    if path.symlink_metadata().is_ok() {
        return Err(misuse(format!(
            "{} exists and is not replaced: give another place with --key PATH",
            path.display()
        )));
    }
    Ok(path)
}

fn save(key: &SigningKey, path: &Path, globals: &Globals) -> Result<(), Failure> {
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|e| internal(&format!("cannot make the folder {}", folder.display()), &e))?;
    }
    key.save_new(path).map_err(refuse)?;
    show(&key.key_id(), &path.display().to_string(), globals);
    Ok(())
}

fn show(key: &KeyId, place: &str, globals: &Globals) {
    let address = mycelium_address(key);
    if globals.json {
        output::json(&json!({
            "path": place,
            "key": key,
            "ssh": ssh_public(key),
            "mycelium_address": address,
        }));
    } else {
        output::line(format!("file              {place}"));
        output::line(format!("key id            {key}"));
        output::line(format!("public key        {}", ssh_public(key)));
        if let Some(address) = address {
            output::line(format!("mycelium address  {address}"));
        }
    }
}

/// The public half as OpenSSH writes it.
fn ssh_public(key: &KeyId) -> String {
    const KIND: &str = "ssh-ed25519";
    let mut blob = Vec::new();
    for part in [KIND.as_bytes(), &key.0] {
        let length = u32::try_from(part.len()).expect("both parts are some bytes long");
        blob.extend_from_slice(&length.to_be_bytes());
        blob.extend_from_slice(part);
    }
    format!("{KIND} {}", STANDARD.encode(blob))
}

fn new_words() -> Result<Zeroizing<String>, Failure> {
    let mut entropy = Zeroizing::new([0; ENTROPY_BYTES]);
    getrandom::fill(entropy.as_mut()).map_err(|e| refuse(KeyError::Random(e)))?;
    let mnemonic = bip39::Mnemonic::from_entropy(entropy.as_ref())
        .map_err(|e| internal("cannot make words", &e))?;
    Ok(Zeroizing::new(mnemonic.to_string()))
}

fn import_openssh(file: &Path) -> Result<SigningKey, Failure> {
    let text = secret_text(super::read_input(file, MAX_INPUT)?)?;
    SigningKey::from_openssh(&text, || passphrase(file)).map_err(refuse)
}

fn import_words() -> Result<SigningKey, Failure> {
    let text = secret_text(super::read_input(Path::new("-"), MAX_INPUT)?)?;
    let password = from_variable().unwrap_or_default();
    SigningKey::from_mnemonic(&text, &password).map_err(refuse)
}

fn secret_text(bytes: Vec<u8>) -> Result<Zeroizing<String>, Failure> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(e) => {
            drop(Zeroizing::new(e.into_bytes()));
            Err(misuse("this is not text: neither an OpenSSH private key nor words"))
        }
    }
}

fn passphrase(file: &Path) -> Result<Zeroizing<String>, KeyError> {
    if let Some(passphrase) = from_variable() {
        return Ok(passphrase);
    }
    let prompt = format!("Passphrase of {}: ", file.display());
    rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(|e| {
        KeyError::Import(format!(
            "the key is encrypted and nobody can be asked for its passphrase ({e}): set \
             {PASSPHRASE_VARIABLE}"
        ))
    })
}

pub fn from_variable() -> Option<Zeroizing<String>> {
    std::env::var(PASSPHRASE_VARIABLE).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_half_as_openssh_writes_it() {
        // ssh-keygen -y of the seed 00…00 prints this.
        let key = SigningKey::from_seed([0; 32]);
        assert_eq!(
            key.key_id().to_string(),
            "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"
        );
        let ssh = ssh_public(&key.key_id());
        let blob = STANDARD.decode(ssh.strip_prefix("ssh-ed25519 ").unwrap()).unwrap();
        assert_eq!(&blob[..19], b"\0\0\0\x0bssh-ed25519\0\0\0\x20");
        assert_eq!(blob[19..], key.key_id().0);
    }

    #[test]
    fn new_words_are_a_key() {
        let words = new_words().unwrap();
        assert_eq!(words.split(' ').count(), 24);
        let key = SigningKey::from_mnemonic(&words, "").unwrap();
        assert_ne!(
            key.key_id(),
            SigningKey::from_mnemonic(&new_words().unwrap(), "").unwrap().key_id()
        );
    }
}
