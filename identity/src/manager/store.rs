//! What the identity manager keeps on disk: the node's key, and what the ledger called it.
//!
//! ```text
//!   STATE/node.key            the key; made once
//!   STATE/registration.json   written after the first registration
//! ```
//!
//! A key is made only where there is no trace of an older one: a node that silently became another
//! node would lose its deployments. A key that cannot be read is an error for a person to look at.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rhizome_model::KeyId;
use rhizome_model::api::Registered;
use serde::{Deserialize, Serialize};

use crate::{KeyError, SigningKey};

/// Why a node's identity cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(
        "the node's key {} is gone, but {} shows that there was one; restore the key, or remove the folder {} to make this a new node",
        key.display(), trace.display(), folder.display()
    )]
    Lost { key: PathBuf, trace: PathBuf, folder: PathBuf },
    #[error(
        "{} was written for the key {registered}, but the node's key is {found}; restore the key that belongs to it",
        trace.display()
    )]
    Exchanged { trace: PathBuf, registered: KeyId, found: KeyId },
    #[error("{what} {}: {source}", path.display())]
    State { what: &'static str, path: PathBuf, source: io::Error },
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    key: KeyId,
    #[serde(flatten)]
    registered: Registered,
}

#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn key_path(&self) -> PathBuf {
        self.folder.join("node.key")
    }

    fn record_path(&self) -> PathBuf {
        self.folder.join("registration.json")
    }

    /// The node's key, and its registration if there was one.
    pub fn open(&self) -> Result<(SigningKey, Option<Registered>), IdentityError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::State { what, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(fail("cannot make the folder", &self.folder))?;
        let record_path = self.record_path();
        let record = match std::fs::read(&record_path) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(fail("cannot read", &record_path)(e)),
        };
        let key = match SigningKey::load(&self.key_path()) {
            Ok(key) => key,
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                if record.is_some() {
                    let folder = self.folder.clone();
                    return Err(IdentityError::Lost {
                        key: self.key_path(),
                        trace: record_path,
                        folder,
                    });
                }
                let key = SigningKey::generate()?;
                key.save_new(&self.key_path())?;
                key
            }
            Err(error) => return Err(error.into()),
        };
        Ok((key.clone(), self.registration(&key, record)?))
    }

    fn registration(
        &self,
        key: &SigningKey,
        record: Option<Vec<u8>>,
    ) -> Result<Option<Registered>, IdentityError> {
        let Some(bytes) = record else { return Ok(None) };
        let trace = self.record_path();
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) if record.key == key.key_id() => Ok(Some(record.registered)),
            Ok(record) => {
                let found = key.key_id();
                Err(IdentityError::Exchanged { trace, registered: record.key, found })
            }
            Err(error) => {
                // The key is there, so the ledger knows the rest.
                tracing::warn!(path = %trace.display(), %error, "the registration is asked for again");
                Ok(None)
            }
        }
    }

    /// Remembers what the ledger called this node.
    pub fn save(&self, key: KeyId, registered: Registered) -> Result<(), IdentityError> {
        let record = Record { key, registered };
        let text = serde_json::to_string_pretty(&record).expect("ids have a JSON form");
        let (path, draft) = (self.record_path(), self.folder.join("registration.draft"));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| IdentityError::State { what: "cannot write", path, source })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rhizome_model::{AccountId, FarmId, NodeId};

    use super::*;

    const REGISTERED: Registered =
        Registered { account: AccountId(3), farm: FarmId(2), node: NodeId(7) };

    #[test]
    fn a_key_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(&dir.path().join("identity"));
        let (key, registered) = store.open().unwrap();
        assert_eq!(registered, None);
        assert_eq!(store.open().unwrap().0.key_id(), key.key_id());
        store.save(key.key_id(), REGISTERED).unwrap();
        assert_eq!(store.open().unwrap().1, Some(REGISTERED));
    }

    #[test]
    fn no_key_is_made_while_there_is_a_trace_of_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let (key, _) = store.open().unwrap();
        store.save(key.key_id(), REGISTERED).unwrap();

        std::fs::set_permissions(store.key_path(), PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(store.open(), Err(IdentityError::Key(KeyError::Exposed { .. }))));
        std::fs::set_permissions(store.key_path(), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(store.key_path(), "").unwrap();
        assert!(matches!(store.open(), Err(IdentityError::Key(KeyError::Malformed { .. }))));

        std::fs::remove_file(store.key_path()).unwrap();
        assert!(matches!(store.open(), Err(IdentityError::Lost { .. })));
        std::fs::write(store.record_path(), "{").unwrap();
        assert!(matches!(store.open(), Err(IdentityError::Lost { .. })));
        assert!(!store.key_path().exists());
    }

    #[test]
    fn a_key_of_another_node_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.open().unwrap();
        store.save(SigningKey::generate().unwrap().key_id(), REGISTERED).unwrap();
        assert!(matches!(store.open(), Err(IdentityError::Exchanged { .. })));
    }
}
