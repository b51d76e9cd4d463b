//! The identity as the first nodes kept it: `node.key` and `registration.json`. It is taken over at
//! the first start, and its files go when the copies of today are written.

use std::io;
use std::path::Path;

use rhizome_model::KeyId;
use rhizome_model::api::Registered;
use serde::Deserialize;

use super::copies::{Copy, IdentityError};
use super::record::{Record, Secret};
use super::store::aside;
use crate::{KeyError, SigningKey};

const KEY: &str = "node.key";
const REGISTRATION: &str = "registration.json";

#[derive(Deserialize)]
struct Registration {
    key: KeyId,
    #[serde(flatten)]
    registered: Registered,
}

/// What the old files of a state folder are.
pub fn read(state: &Path) -> Copy {
    let trace = state.join(REGISTRATION);
    let registration = match std::fs::read(&trace) {
        Ok(bytes) => Some(serde_json::from_slice::<Registration>(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Copy::Broken(format!("{}: {e}", trace.display())),
    };
    let key = match SigningKey::load(&state.join(KEY)) {
        Ok(key) => key,
        Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return match registration {
                None => Copy::Absent,
                Some(_) => Copy::Broken(format!(
                    "it is gone, but {} shows that there was one",
                    trace.display()
                )),
            };
        }
        Err(error) => return Copy::Broken(error.to_string()),
    };
    let registered = match registration.flatten() {
        Some(other) if other.key != key.key_id() => {
            let (file, found, of) = (trace.display(), key.key_id(), other.key);
            return Copy::Broken(format!("{file} is of the key {of}, the key file holds {found}"));
        }
        found => found.map(|r| r.registered),
    };
    Copy::Valid(Box::new(Record {
        generation: 0,
        key: key.key_id(),
        serial_number: String::new(),
        secret: Secret::Plain(key),
        registered,
    }))
}

/// Removes the old files, once the identity is kept as it is today.
pub fn retire(state: &Path) {
    for file in [KEY, REGISTRATION] {
        match std::fs::remove_file(state.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file, %error, "the file of an older version cannot be removed");
            }
            _ => {}
        }
    }
}

pub fn set_aside(state: &Path) -> Result<(), IdentityError> {
    for path in [KEY, REGISTRATION].map(|file| state.join(file)) {
        if path.exists() {
            aside(&path)?;
        }
    }
    Ok(())
}
