//! What the ledger says under its own signature, so that a node can believe it without asking.
//!
//! ```text
//!   GET /v2/statements/account/7       ─▶ DSSE of a Statement   what is so, as of a revision
//!   GET /v2/statements?after=REVISION  ─▶ DSSE of Changes       about whom something changed since
//! ```
//!
//! Every change in the ledger has a revision, one higher than the last. A statement says which
//! change made it so (`revision`) and up to which one it is known to hold (`as_of`). Whoever has a
//! statement and reads the changes after it knows whether it still holds: [`Changes`] that do not
//! name it renew it. So one small request tells a node of every revocation, whatever it holds.
//!
//! Unknown fields are ignored: a newer ledger may say more.

mod farm;
mod keys;
mod usage;

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{AccountId, FarmId, KeyId, NodeId};

pub use farm::{Allowance, Farm, FarmAccess, Grant, GrantId, MAX_GRANTS};
pub use keys::{Account, AccountKey, KeyChange, KeyDocument, KeyEnd, KeyEnding, KeyRefusal};
pub use usage::{Exceeded, FarmUse};

/// The payload types of what the ledger signs.
pub mod payload_type {
    pub const STATEMENT: &str = "application/vnd.rhizome.statement.v1+json";
    pub const CHANGES: &str = "application/vnd.rhizome.changes.v1+json";
    /// A change of an account's keys; its keys sign it, not the ledger.
    pub const KEYS: &str = "application/vnd.rhizome.keys.v1+json";
}

/// Changes in one answer.
pub const MAX_CHANGES: usize = 1000;

/// A number that grows with every change in the ledger.
pub type Revision = u64;

/// What a statement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    Account(AccountId),
    Farm(FarmId),
    Node(NodeId),
    Coordinator(KeyId),
}

impl Subject {
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Account(_) => "account",
            Self::Farm(_) => "farm",
            Self::Node(_) => "node",
            Self::Coordinator(_) => "coordinator",
        }
    }

    pub fn id(&self) -> String {
        match self {
            Self::Account(id) => id.to_string(),
            Self::Farm(id) => id.to_string(),
            Self::Node(id) => id.to_string(),
            Self::Coordinator(key) => key.to_string(),
        }
    }
}

/// `account/7`, as in the path that it is asked for at.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind(), self.id())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a statement is about account/ID, farm/ID, node/ID or coordinator/KEY")]
pub struct SubjectError;

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let (kind, id) = text.split_once('/').ok_or(SubjectError)?;
        fn read<T: FromStr>(id: &str) -> Result<T, SubjectError> {
            id.parse().map_err(|_| SubjectError)
        }
        match kind {
            "account" => read(id).map(Self::Account),
            "farm" => read(id).map(Self::Farm),
            "node" => read(id).map(Self::Node),
            "coordinator" => read(id).map(Self::Coordinator),
            _ => Err(SubjectError),
        }
    }
}

impl Serialize for Subject {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    Account(Account),
    Farm(Farm),
    Node(Node),
    Coordinator(Coordinator),
}

impl Says {
    pub fn subject(&self) -> Subject {
        match self {
            Self::Account(account) => Subject::Account(account.id),
            Self::Farm(farm) => Subject::Farm(farm.id),
            Self::Node(node) => Subject::Node(node.id),
            Self::Coordinator(coordinator) => Subject::Coordinator(coordinator.key),
        }
    }
}

/// A machine of a farm, and whether the farm's owner has approved of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = StatementNode)]
pub struct Node {
    pub id: NodeId,
    pub farm: FarmId,
    pub account: AccountId,
    pub key: KeyId,
    pub approved: bool,
}

/// A coordinator that somebody runs: what it signs with, where it listens. That it is registered
/// gives it no right; a farm's owner names the coordinators that may follow its nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = StatementCoordinator)]
pub struct Coordinator {
    pub key: KeyId,
    pub account: AccountId,
    pub url: String,
    /// Its account has taken it back; it counts nowhere any more.
    pub withdrawn: bool,
}

/// The payload of a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    pub network: String,
    /// The change that made it so.
    pub revision: Revision,
    /// It holds up to this change.
    pub as_of: Revision,
    /// Unix seconds.
    pub issued_at: i64,
    pub expires: i64,
    pub says: Says,
}

/// Something changed about somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub subject: Subject,
    pub revision: Revision,
}

/// The payload of the changes after a revision, each subject once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    pub network: String,
    pub after: Revision,
    /// All changes up to this one are in it.
    pub through: Revision,
    /// There are later ones: ask again, after `through`.
    pub more: bool,
    /// Unix seconds.
    pub issued_at: i64,
    /// Until then, whatever was so before and is not named here may be held for so.
    pub expires: i64,
    pub changed: Vec<Changed>,
}

/// Which ledger this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LedgerView {
    pub network: String,
    /// It signs statements with this key.
    pub key: KeyId,
    /// The last change.
    pub revision: Revision,
    /// Its clock, in Unix seconds.
    pub now: i64,
    /// How long a statement counts.
    pub lifetime_secs: i64,
}

/// Something that the ledger signs.
pub trait Signed: DeserializeOwned {
    const PAYLOAD_TYPE: &str;
    fn network(&self) -> &str;
    fn issued_at(&self) -> i64;
    fn expires(&self) -> i64;
}

impl Signed for Statement {
    const PAYLOAD_TYPE: &str = payload_type::STATEMENT;
    fn network(&self) -> &str {
        &self.network
    }
    fn issued_at(&self) -> i64 {
        self.issued_at
    }
    fn expires(&self) -> i64 {
        self.expires
    }
}

impl Signed for Changes {
    const PAYLOAD_TYPE: &str = payload_type::CHANGES;
    fn network(&self) -> &str {
        &self.network
    }
    fn issued_at(&self) -> i64 {
        self.issued_at
    }
    fn expires(&self) -> i64 {
        self.expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_read_back() {
        let key = KeyId([7; 32]);
        for subject in [
            Subject::Account(AccountId(7)),
            Subject::Farm(FarmId(1)),
            Subject::Node(NodeId(9)),
            Subject::Coordinator(key),
        ] {
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
        for wrong in ["account", "account/0", "account/x", "twin/1", "coordinator/7", ""] {
            assert_eq!(wrong.parse::<Subject>(), Err(SubjectError), "{wrong}");
        }
    }

    #[test]
    fn a_statement_on_the_wire() {
        let statement = Statement {
            network: "dev".into(),
            revision: 3,
            as_of: 9,
            issued_at: 1_800_000_000,
            expires: 1_800_086_400,
            says: Says::Account(Account::with_key(AccountId(7), KeyId([7; 32]), 1_800_000_000)),
        };
        insta::assert_json_snapshot!(statement);
        let json = serde_json::to_string(&statement).unwrap();
        assert_eq!(serde_json::from_str::<Statement>(&json).unwrap(), statement);
    }
}
