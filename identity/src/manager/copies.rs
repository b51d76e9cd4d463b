//! The copies of a node's identity, and which of them counts. Pure.
//!
//! ```text
//!   valid ones of one key ─▶ the newest; the others are brought up to it
//!   valid ones of two keys ─▶ stop          damaged or out of sight, none valid ─▶ stop
//!   nowhere a trace ─▶ a new identity may be made
//! ```

use std::path::PathBuf;

use rhizome_model::{Code, Failure, KeyId};

use super::record::Record;

/// What to do that is said wherever an identity is lost.
const WAYS_OUT: &str = "bring it back, or import an export with `rhizome node identity import FILE`, \
                        or start once with --new-identity to make this machine a new node";

/// What was found where a copy belongs.
#[derive(Debug, Clone)]
pub enum Copy {
    Valid(Box<Record>),
    /// Its place is there and was never used.
    Absent,
    /// Its place is not there: a state pool that is not mounted.
    Away(String),
    /// Something is there that cannot be used, and why.
    Broken(String),
}

/// Which copy counts: its index; none where there is no trace of one.
pub fn judge(copies: &[(PathBuf, Copy)]) -> Result<Option<usize>, IdentityError> {
    let valid: Vec<(usize, &Record)> = copies
        .iter()
        .enumerate()
        .filter_map(|(at, (_, copy))| match copy {
            Copy::Valid(record) => Some((at, record.as_ref())),
            Copy::Absent | Copy::Away(_) | Copy::Broken(_) => None,
        })
        .collect();
    if let Some((first, record)) = valid.first()
        && let Some((other, theirs)) = valid.iter().find(|(_, r)| r.key != record.key)
    {
        return Err(IdentityError::Conflict {
            one: copies[*first].0.clone(),
            key: record.key,
            other: copies[*other].0.clone(),
            theirs: theirs.key,
        });
    }
    // The first of several that are as new: the order of the places is the same each time.
    let newest = valid.iter().rev().max_by_key(|(_, r)| r.generation);
    if let Some((at, _)) = newest {
        return Ok(Some(*at));
    }
    for (path, copy) in copies {
        match copy {
            Copy::Broken(why) => {
                return Err(IdentityError::Broken { path: path.clone(), why: why.clone() });
            }
            Copy::Away(why) => {
                return Err(IdentityError::Away { path: path.clone(), why: why.clone() });
            }
            Copy::Valid(_) | Copy::Absent => {}
        }
    }
    Ok(None)
}

/// Why a node's identity cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the node's identity {} cannot be used ({why}) and there is no good copy: {WAYS_OUT}", path.display())]
    Broken { path: PathBuf, why: String },
    #[error("there is no identity where we can look, and the state pool of {} is out of sight ({why}): mount it, since the identity may be there; or start once with --new-identity to make this machine a new node", path.display())]
    Away { path: PathBuf, why: String },
    #[error("two identities are here: {} is of the key {key}, {} of the key {theirs}; remove the disk, or move away the file, that is not this node's", one.display(), other.display())]
    Conflict { one: PathBuf, key: KeyId, other: PathBuf, theirs: KeyId },
    #[error("the node's identity {} is sealed to a TPM and {why}: put the disk back into its machine, or {WAYS_OUT}", path.display())]
    Sealed { path: PathBuf, why: String },
    #[error(
        "the ledger knows this machine (serial number {serial}) as node {node}, whose identity is not here: {WAYS_OUT}"
    )]
    KnownMachine { serial: String, node: rhizome_model::NodeId },
    #[error("there is an identity already, of the key {0}: it is not replaced")]
    Exists(KeyId),
    #[error("{what} {}: {why}", path.display())]
    State { what: &'static str, path: PathBuf, why: String },
    #[error("the key cannot be made or sealed: {0}")]
    Key(String),
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        let code = match &error {
            IdentityError::Broken { .. }
            | IdentityError::Away { .. }
            | IdentityError::Sealed { .. } => Code::IdentityLost,
            IdentityError::Conflict { .. } => Code::IdentityConflict,
            IdentityError::KnownMachine { .. } => Code::KnownMachine,
            IdentityError::Exists(_) => Code::Conflict,
            IdentityError::State { .. } => Code::StateNotWritable,
            IdentityError::Key(_) => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Secret;
    use super::*;
    use crate::SigningKey;

    fn valid(seed: u8, generation: u64) -> Copy {
        let key = SigningKey::from_seed([seed; 32]);
        Copy::Valid(Box::new(Record {
            generation,
            key: key.key_id(),
            serial_number: "S".into(),
            secret: Secret::Plain(key),
            registered: None,
        }))
    }

    fn judged(copies: Vec<Copy>) -> Result<Option<usize>, IdentityError> {
        let places: Vec<_> = copies
            .into_iter()
            .enumerate()
            .map(|(n, copy)| (PathBuf::from(format!("/{n}")), copy))
            .collect();
        judge(&places)
    }

    #[test]
    fn the_newest_valid_one_counts_whatever_the_others_are() {
        let broken = || Copy::Broken("torn".into());
        let away = || Copy::Away("not mounted".into());
        assert_eq!(judged(vec![valid(1, 3), valid(1, 5), valid(1, 5)]), Ok(Some(1)));
        assert_eq!(judged(vec![broken(), away(), Copy::Absent, valid(1, 1)]), Ok(Some(3)));
        assert_eq!(judged(vec![Copy::Absent, Copy::Absent]), Ok(None));
        assert_eq!(judged(vec![]), Ok(None));
    }

    #[test]
    fn every_trace_stops_a_new_one() {
        let broken = judged(vec![Copy::Absent, Copy::Broken("torn".into())]).unwrap_err();
        assert!(broken.to_string().contains("/1 cannot be used (torn)"), "{broken}");
        let away = judged(vec![Copy::Absent, Copy::Away("not mounted".into())]).unwrap_err();
        assert!(away.to_string().contains("mount it"), "{away}");
        for error in [broken, away] {
            assert_eq!(Failure::from(error).code, Code::IdentityLost);
        }
    }

    #[test]
    fn copies_of_two_nodes_are_a_conflict_however_new() {
        let error = judged(vec![valid(1, 9), valid(2, 1)]).unwrap_err();
        assert!(matches!(error, IdentityError::Conflict { .. }));
        assert_eq!(Failure::from(error).code, Code::IdentityConflict);
    }
}
