//! Where the identity manager keeps the node's identity: a copy in its state folder, and one in every
//! state pool.
//!
//! ```text
//!   STATE/node.identity
//!   POOL/rhizome-identity/node.identity      one per state pool
//! ```
//!
//! A key is made only where there is no trace of an older one: a node that silently became another
//! node would lose its deployments. What cannot be read is for a person to look at.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rhizome_model::KeyId;
use rhizome_model::api::Registered;
use zeroize::Zeroizing;

pub use super::copies::IdentityError;
use super::copies::{Copy, judge};
use super::legacy;
use super::record::{MAX_BYTES, Record, Secret};
use crate::SigningKey;

const FILE: &str = "node.identity";
const POOL_FOLDER: &str = "rhizome-identity";

/// Keeps a secret so that only this machine can have it back: a TPM.
pub trait Sealer: Send + Sync {
    fn seal(&self, secret: &[u8]) -> Result<Vec<u8>, String>;
    /// `Err` says why it does not open, in the rest of a sentence.
    fn open(&self, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, String>;
    /// Whether a key may not be kept without it. Where nobody asked for a TPM, one that does not work
    /// is no reason for a machine not to become a node.
    fn is_required(&self) -> bool {
        true
    }
}

/// The places of the copies, before anything is known about them.
#[derive(Clone)]
pub struct Store {
    state: PathBuf,
    pools: Vec<PathBuf>,
    sealer: Option<Arc<dyn Sealer>>,
}

/// What is where, for people.
pub type Places = Vec<(PathBuf, Copy)>;

/// What a look into every place came to.
pub enum Opened {
    Known(Kept),
    /// There is no trace of an identity.
    Never(Store),
}

/// An identity that is open, and kept.
pub struct Kept {
    store: Store,
    key: SigningKey,
    record: Record,
}

impl Store {
    pub fn new(state: &Path, pools: &[PathBuf], sealer: Option<Arc<dyn Sealer>>) -> Self {
        Self { state: state.to_owned(), pools: pools.to_vec(), sealer }
    }

    /// Looks into every place.
    pub fn survey(&self) -> Places {
        let own = self.state.join(FILE);
        let first = match read(&own) {
            Copy::Absent => legacy::read(&self.state),
            found => found,
        };
        let mut places = vec![(own, first)];
        for pool in &self.pools {
            let path = pool.join(POOL_FOLDER).join(FILE);
            let copy = match mounted(pool) {
                Ok(()) => read(&path),
                Err(why) => Copy::Away(why),
            };
            places.push((path, copy));
        }
        places
    }

    /// The node's identity; none where there is no trace of one. Copies that are older, damaged or
    /// missing are brought up to the newest.
    pub fn open(self) -> Result<Opened, IdentityError> {
        let mut places = self.survey();
        let Some(at) = judge(&places)? else { return Ok(Opened::Never(self)) };
        let path = places[at].0.clone();
        let Copy::Valid(record) = std::mem::replace(&mut places[at].1, Copy::Absent) else {
            return Err(IdentityError::Broken { path, why: "it was judged wrongly".into() });
        };
        let key = self.unlock(&path, &record)?;
        let mut kept = Kept { store: self, key, record: *record };
        if kept.store.sealer.is_some() && matches!(kept.record.secret, Secret::Plain(_)) {
            let secret = kept.store.protect(&kept.key)?;
            if matches!(secret, Secret::Sealed(_)) {
                tracing::info!("the node's key is sealed to the TPM from now on");
                kept.change(|record| record.secret = secret)?;
            }
        }
        kept.heal();
        if matches!(read(&kept.store.state.join(FILE)), Copy::Valid(_)) {
            legacy::retire(&kept.store.state);
        }
        Ok(Opened::Known(kept))
    }

    fn unlock(&self, path: &Path, record: &Record) -> Result<SigningKey, IdentityError> {
        let blob = match &record.secret {
            Secret::Plain(key) => return Ok(key.clone()),
            Secret::Sealed(blob) => blob,
        };
        let closed = |why: String| IdentityError::Sealed { path: path.to_owned(), why };
        let sealer = self.sealer.as_ref();
        let sealer = sealer.ok_or_else(|| closed("this machine shows us none".into()))?;
        let seed = sealer.open(blob).map_err(closed)?;
        let key = std::str::from_utf8(&seed).ok().and_then(|s| SigningKey::from_hex_seed(s).ok());
        key.filter(|key| key.key_id() == record.key)
            .ok_or_else(|| closed("what it opens is not this node's key".into()))
    }

    /// Makes this key the node's identity. Only where there is none.
    pub fn create(
        self,
        key: SigningKey,
        serial_number: &str,
        registered: Option<Registered>,
    ) -> Result<Kept, IdentityError> {
        let record = Record {
            generation: 0,
            key: key.key_id(),
            serial_number: serial_number.to_owned(),
            secret: Secret::Plain(key.clone()),
            registered,
        };
        let mut kept = Kept { store: self, key, record };
        kept.change(|_| {})?;
        Ok(kept)
    }

    /// Moves away what cannot be used, so that a new identity can be made. What is good stays, and
    /// is an error.
    pub fn set_aside(&self) -> Result<(), IdentityError> {
        for (path, copy) in self.survey() {
            match copy {
                Copy::Valid(record) => match self.unlock(&path, &record) {
                    Ok(key) => return Err(IdentityError::Exists(key.key_id())),
                    Err(_) => aside(&path)?,
                },
                Copy::Broken(_) if path.exists() => aside(&path)?,
                Copy::Broken(_) => legacy::set_aside(&self.state)?,
                Copy::Absent | Copy::Away(_) => {}
            }
        }
        Ok(())
    }

    fn protect(&self, key: &SigningKey) -> Result<Secret, IdentityError> {
        let Some(sealer) = &self.sealer else { return Ok(Secret::Plain(key.clone())) };
        let seed = key.to_hex_seed();
        let blob = match sealer.seal(seed.as_bytes()) {
            Ok(blob) => blob,
            Err(error) if !sealer.is_required() => {
                tracing::error!(
                    error,
                    "the TPM is not used: the node's key is kept as it is, in a file of mode 0600"
                );
                return Ok(Secret::Plain(key.clone()));
            }
            Err(error) => return Err(IdentityError::Key(error)),
        };
        // A seal that does not open would be found at the next start, with the key gone.
        match sealer.open(&blob) {
            Ok(opened) if *opened == seed.as_bytes() => Ok(Secret::Sealed(blob)),
            Ok(_) => Err(IdentityError::Key("the TPM gave back something else".into())),
            Err(why) => {
                Err(IdentityError::Key(format!("what the TPM sealed does not open: {why}")))
            }
        }
    }
}

impl Kept {
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    pub fn key_id(&self) -> KeyId {
        self.record.key
    }

    pub fn registered(&self) -> Option<Registered> {
        self.record.registered
    }

    pub fn serial_number(&self) -> &str {
        &self.record.serial_number
    }

    pub fn is_sealed(&self) -> bool {
        matches!(self.record.secret, Secret::Sealed(_))
    }

    /// Remembers what the ledger called this node.
    pub fn save(&mut self, registered: Registered) -> Result<(), IdentityError> {
        self.change(|record| record.registered = Some(registered))
    }

    /// A new generation in every place that is there. One that took it is enough.
    fn change(&mut self, what: impl FnOnce(&mut Record)) -> Result<(), IdentityError> {
        let mut next = self.record.clone();
        what(&mut next);
        next.generation += 1;
        if matches!(next.secret, Secret::Plain(_)) {
            next.secret = self.store.protect(&self.key)?;
        }
        let bytes = next.encode();
        let (mut written, mut failed) = (false, None);
        for (path, copy) in self.store.survey() {
            match copy {
                Copy::Away(why) => {
                    tracing::warn!(path = %path.display(), why, "a copy of the identity is out of sight");
                }
                Copy::Valid(_) | Copy::Absent | Copy::Broken(_) => match write(&path, &bytes) {
                    Ok(()) => written = true,
                    Err(error) => failed = Some((path, error)),
                },
            }
        }
        if !written && let Some((path, error)) = failed {
            let why = error.to_string();
            return Err(IdentityError::State { what: "cannot write", path, why });
        }
        if let Some((path, error)) = failed {
            tracing::error!(path = %path.display(), %error, "a copy of the identity cannot be written");
        }
        self.record = next;
        Ok(())
    }

    /// Brings every place up to what is known here. What every place is like afterwards.
    pub fn heal(&self) -> Places {
        let bytes = self.record.encode();
        let mut places = self.store.survey();
        for (path, copy) in &mut places {
            let why = match copy {
                Copy::Valid(record) if record.key != self.record.key => {
                    tracing::error!(path = %path.display(), key = %record.key,
                        "the identity of another node is here; remove it or its disk");
                    continue;
                }
                // One that is newer was written by somebody else: it is not for us to undo.
                Copy::Valid(record) if record.generation > self.record.generation => continue,
                Copy::Valid(record) if *record.encode() == *bytes && path.exists() => continue,
                Copy::Away(_) => continue,
                Copy::Valid(_) => "older",
                Copy::Absent => "missing",
                Copy::Broken(why) => why.as_str(),
            };
            match write(path, &bytes) {
                Ok(()) => {
                    tracing::info!(path = %path.display(), why, "a copy of the identity was healed");
                    *copy = Copy::Valid(Box::new(self.record.clone()));
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), why, %error,
                        "a copy of the identity cannot be healed");
                    *copy = Copy::Broken(error.to_string());
                }
            }
        }
        places
    }
}

/// A state pool is a file system of its own: a folder that is left where one should be mounted must
/// not be taken for it.
fn mounted(pool: &Path) -> Result<(), String> {
    let meta = std::fs::metadata(pool).map_err(|e| e.to_string())?;
    let above = std::fs::metadata(pool.join("..")).map_err(|e| e.to_string())?;
    if meta.dev() == above.dev() && meta.ino() != above.ino() {
        return Err("nothing is mounted there".into());
    }
    Ok(())
}

fn read(path: &Path) -> Copy {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Copy::Absent,
        Err(e) => return Copy::Broken(e.to_string()),
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize));
    let read = file
        .metadata()
        .and_then(|meta| (&mut file).take(MAX_BYTES).read_to_end(&mut bytes).map(|_| meta));
    let meta = match read {
        Ok(meta) => meta,
        Err(e) => return Copy::Broken(e.to_string()),
    };
    if meta.mode() & 0o077 != 0 {
        return Copy::Broken(format!("others can read it; run: chmod 600 {}", path.display()));
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() && meta.uid() != 0 {
        return Copy::Broken(format!("it belongs to another user, uid {}", meta.uid()));
    }
    match Record::decode(&bytes) {
        Ok(record) => Copy::Valid(Box::new(record)),
        Err(why) => Copy::Broken(why.into()),
    }
}

/// The copy appears whole and on disk, or the one before stays.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let draft = path.with_extension("draft");
    match std::fs::remove_file(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

/// Out of the way, never away.
pub(super) fn aside(path: &Path) -> Result<(), IdentityError> {
    let now = rhizome_service::clock::now_secs();
    let to = path.with_extension(format!("replaced-{now}"));
    tracing::warn!(from = %path.display(), to = %to.display(), "an identity is set aside");
    std::fs::rename(path, &to).map_err(|e| IdentityError::State {
        what: "cannot move away",
        path: path.to_owned(),
        why: e.to_string(),
    })
}

#[cfg(test)]
mod tests;
