//! A node's identity on its way to another disk or machine: an armored age file (age-encryption.org),
//! for a passphrase or for a recipient's key, which the `age` tool opens too.

use age::secrecy::SecretString;
use rhizome_model::api::Registered;
use rhizome_model::{Code, Failure, KeyId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::store::Kept;
use crate::SigningKey;

const FORMAT: &str = "rhizome-node-identity/1";
/// Armored, with room to spare.
pub const MAX_EXPORT_BYTES: usize = 64 * 1024;
/// What guards the key for years on a disk in a drawer.
const MIN_PASSPHRASE: usize = 12;

/// Who can open an export.
pub enum Lock {
    Passphrase(Zeroizing<String>),
    /// `age1…`, as `age-keygen` prints it.
    Recipient(String),
}

/// What opens it.
pub enum Unlock {
    Passphrase(Zeroizing<String>),
    /// The text of an age identity file, with its `AGE-SECRET-KEY-1…`.
    Identity(Zeroizing<String>),
}

/// An identity outside its node.
pub struct Exported {
    pub key: SigningKey,
    pub serial_number: String,
    pub registered: Option<Registered>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    format: String,
    key: KeyId,
    seed: String,
    serial_number: String,
    registered: Option<Registered>,
}

impl Drop for Payload {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.seed);
    }
}

/// Encrypts an identity.
pub fn export(kept: &Kept, lock: &Lock) -> Result<String, Failure> {
    let payload = Payload {
        format: FORMAT.into(),
        key: kept.key_id(),
        seed: kept.key().to_hex_seed().to_string(),
        serial_number: kept.serial_number().into(),
        registered: kept.registered(),
    };
    let text =
        Zeroizing::new(serde_json::to_vec(&payload).expect("texts and ids have a JSON form"));
    let made = match lock {
        Lock::Passphrase(passphrase) if passphrase.chars().count() < MIN_PASSPHRASE => {
            return Err(Failure::new(
                Code::BadRequest,
                format!(
                    "the passphrase has fewer than {MIN_PASSPHRASE} characters: take a longer one"
                ),
            ));
        }
        Lock::Passphrase(passphrase) => {
            let recipient = age::scrypt::Recipient::new(SecretString::from(passphrase.as_str()));
            age::encrypt_and_armor(&recipient, &text)
        }
        Lock::Recipient(recipient) => {
            let recipient: age::x25519::Recipient = recipient.parse().map_err(|e| {
                Failure::new(Code::BadRequest, format!("'{recipient}' is no age recipient: {e}"))
            })?;
            age::encrypt_and_armor(&recipient, &text)
        }
    };
    made.map_err(|e| Failure::new(Code::Internal, format!("the identity cannot be encrypted: {e}")))
}

/// Opens an export.
pub fn import(text: &[u8], unlock: &Unlock) -> Result<Exported, Failure> {
    let opened = match unlock {
        Unlock::Passphrase(passphrase) => {
            let identity = age::scrypt::Identity::new(SecretString::from(passphrase.as_str()));
            age::decrypt(&identity, text)
        }
        Unlock::Identity(file) => {
            let line = file.lines().map(str::trim).find(|l| l.starts_with("AGE-SECRET-KEY-"));
            let identity: age::x25519::Identity =
                line.unwrap_or_default().parse().map_err(|e| {
                    Failure::new(Code::BadRequest, format!("this is no age identity: {e}"))
                })?;
            age::decrypt(&identity, text)
        }
    };
    let text = Zeroizing::new(opened.map_err(|e| {
        use age::DecryptError as E;
        let wrong = matches!(
            e,
            E::DecryptionFailed
                | E::KeyDecryptionFailed
                | E::NoMatchingKeys
                | E::ExcessiveWork { .. }
        );
        let code = if wrong { Code::WrongPassphrase } else { Code::BadRequest };
        Failure::new(code, format!("the export does not open: {e}"))
    })?);
    let bad = || Failure::new(Code::BadRequest, "this is no export of a node's identity");
    let payload: Payload = serde_json::from_slice(&text).map_err(|_| bad())?;
    let key = SigningKey::from_hex_seed(&payload.seed).map_err(|_| bad())?;
    if payload.format != FORMAT || key.key_id() != payload.key {
        return Err(bad());
    }
    Ok(Exported {
        key,
        serial_number: payload.serial_number.clone(),
        registered: payload.registered,
    })
}
