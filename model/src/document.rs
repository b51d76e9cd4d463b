//! What a signed envelope says: the payloads of the three payload types.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    AccountId, DeploymentId, KeyId, Name, NodeId, OperationDocument, Version, payload_type,
};

/// An envelope may be accepted for this long at most; its nonce is remembered as long.
pub const MAX_LIFETIME_SECS: i64 = 30 * 24 * 3600;
const MAX_NODES: usize = 1000;
const NONCE_LENGTH: std::ops::RangeInclusive<usize> = 16..=64;

/// A payload, read by its type.
#[derive(Debug, Clone)]
pub enum Document {
    Deployment(Box<DeploymentDocument>),
    Delete(DeleteDocument),
    Operation(Box<OperationDocument>),
}

/// What all documents have in common: whose it is, where it counts, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub not_before: Option<i64>,
    pub expires: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowError {
    NotYetValid,
    Expired,
    TooLong,
}

/// The intent of one account: what shall run, where, and by which rules.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeploymentDocument {
    pub account: AccountId,
    pub name: Name,
    pub version: Version,
    /// The network that this counts on: `dev`, `test` or `main`.
    pub network: String,
    /// The Rhai source.
    pub script: String,
    /// Seen by the script as `params`.
    #[serde(default)]
    pub params: BTreeMap<String, serde_json::Value>,
    pub placement: Placement,
    #[serde(default)]
    pub policy: Policy,
    /// Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<i64>,
    /// Unix seconds.
    pub expires: i64,
    /// 16 to 64 letters and digits that the account uses once.
    pub nonce: String,
    /// Name of the secret → node → the secret sealed to that node's key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, BTreeMap<NodeId, String>>,
    /// Further keys whose signatures count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cosigners: Vec<Cosigner>,
    /// The sum of weights that the valid signatures must reach. The account's own key weighs 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub required_weight: u32,
}

/// The end of a deployment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteDocument {
    pub account: AccountId,
    pub name: Name,
    /// The version that is deleted; a newer one stays.
    pub version: Version,
    pub network: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<i64>,
    pub expires: i64,
    pub nonce: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Each of these nodes gets one task.
    pub nodes: Vec<NodeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    pub on_failure: OnFailure,
    /// Resources whose data may go with them: without its name here, a version that deletes or
    /// replaces a volume with something in it is refused.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    #[schema(value_type = Vec<Name>)]
    pub allow_data_loss: BTreeSet<Name>,
}

/// What becomes of a version that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The node goes back to the version before; without one, nothing is left.
    #[default]
    Rollback,
    /// What works is kept.
    Keep,
}

/// Another key whose signature counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cosigner {
    pub key: KeyId,
    #[serde(default = "one")]
    pub weight: u32,
    /// Without this signature the others do not suffice.
    #[serde(default)]
    pub required: bool,
}

fn one() -> u32 {
    1
}

fn is_one(n: &u32) -> bool {
    *n == 1
}

impl Document {
    /// Reads the payload of a type. `None` when the type is not ours.
    pub fn from_payload(kind: &str, payload: &[u8]) -> Option<Result<Self, String>> {
        match kind {
            payload_type::DEPLOYMENT => Some(read(payload).and_then(|d: DeploymentDocument| {
                d.check()?;
                Ok(Self::Deployment(Box::new(d)))
            })),
            payload_type::DELETE => Some(read(payload).and_then(|d: DeleteDocument| {
                check_nonce(&d.nonce)?;
                Ok(Self::Delete(d))
            })),
            payload_type::OPERATION => Some(read(payload).and_then(|d: OperationDocument| {
                check_nonce(&d.nonce)?;
                d.check()?;
                Ok(Self::Operation(Box::new(d)))
            })),
            _ => None,
        }
    }

    pub fn payload_type(&self) -> &'static str {
        match self {
            Self::Deployment(_) => payload_type::DEPLOYMENT,
            Self::Delete(_) => payload_type::DELETE,
            Self::Operation(_) => payload_type::OPERATION,
        }
    }

    pub fn account(&self) -> AccountId {
        match self {
            Self::Deployment(d) => d.account,
            Self::Delete(d) => d.account,
            Self::Operation(d) => d.account,
        }
    }

    pub fn deployment_id(&self) -> DeploymentId {
        let name = match self {
            Self::Deployment(d) => &d.name,
            Self::Delete(d) => &d.name,
            Self::Operation(d) => &d.name,
        };
        DeploymentId { account: self.account(), name: name.clone() }
    }

    pub fn version(&self) -> Version {
        match self {
            Self::Deployment(d) => d.version,
            Self::Delete(d) => d.version,
            Self::Operation(d) => d.version,
        }
    }

    pub fn network(&self) -> &str {
        match self {
            Self::Deployment(d) => &d.network,
            Self::Delete(d) => &d.network,
            Self::Operation(d) => &d.network,
        }
    }

    pub fn nonce(&self) -> &str {
        match self {
            Self::Deployment(d) => &d.nonce,
            Self::Delete(d) => &d.nonce,
            Self::Operation(d) => &d.nonce,
        }
    }

    pub fn window(&self) -> Window {
        match self {
            Self::Deployment(d) => Window { not_before: d.not_before, expires: d.expires },
            Self::Delete(d) => Window { not_before: d.not_before, expires: d.expires },
            Self::Operation(d) => Window { not_before: d.not_before, expires: d.expires },
        }
    }

    /// The keys besides the account's that count, and the weight that must be reached.
    pub fn cosigners(&self) -> (&[Cosigner], u32) {
        match self {
            Self::Deployment(d) => (&d.cosigners, d.required_weight),
            Self::Delete(_) | Self::Operation(_) => (&[], 1),
        }
    }
}

impl Window {
    pub fn check(&self, now: i64) -> Result<(), WindowError> {
        if self.expires <= now {
            Err(WindowError::Expired)
        } else if self.not_before.is_some_and(|t| t > now) {
            Err(WindowError::NotYetValid)
        } else if self.expires - now > MAX_LIFETIME_SECS {
            Err(WindowError::TooLong)
        } else {
            Ok(())
        }
    }
}

impl DeploymentDocument {
    fn check(&self) -> Result<(), String> {
        check_nonce(&self.nonce)?;
        let nodes = &self.placement.nodes;
        if nodes.is_empty() || nodes.len() > MAX_NODES {
            return Err(format!("placement.nodes: name 1 to {MAX_NODES} nodes"));
        }
        if nodes.iter().collect::<BTreeSet<_>>().len() != nodes.len() {
            return Err("placement.nodes: a node is named twice".into());
        }
        if self.version.0 == 0 {
            return Err("version: count from 1".into());
        }
        let reachable = self.cosigners.iter().fold(1, |sum: u32, c| sum.saturating_add(c.weight));
        if self.required_weight == 0 || self.required_weight > reachable {
            return Err(format!(
                "required_weight: from 1 to {reachable}, the weight of all signers"
            ));
        }
        Ok(())
    }
}

fn check_nonce(nonce: &str) -> Result<(), String> {
    let letters = nonce.bytes().all(|b| b.is_ascii_alphanumeric());
    if letters && NONCE_LENGTH.contains(&nonce.len()) {
        Ok(())
    } else {
        Err("nonce: write 16 to 64 letters and digits".into())
    }
}

fn read<'de, T: Deserialize<'de>>(payload: &'de [u8]) -> Result<T, String> {
    // RawValue first: it refuses what is not UTF-8 or not one JSON value with a position.
    let raw: &RawValue = serde_json::from_slice(payload).map_err(|e| e.to_string())?;
    serde_json::from_str(raw.get()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document() -> Value {
        json!({
            "account": 1, "name": "demo", "version": 1, "network": "dev", "script": "",
            "placement": { "nodes": [1] }, "expires": 2_000_000_000, "nonce": "0123456789abcdef",
        })
    }

    fn read_deployment(value: &Value) -> Result<Document, String> {
        Document::from_payload(payload_type::DEPLOYMENT, value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_smallest_document() {
        let document = read_deployment(&document()).unwrap();
        assert_eq!(document.deployment_id().to_string(), "1/demo");
        assert_eq!(document.cosigners(), (&[][..], 1));
    }

    #[test]
    fn each_wrong_field_is_named() {
        for (field, value, says) in [
            ("name", json!("../x"), "is not a name"),
            ("version", json!(0), "version"),
            ("extra", json!(1), "unknown field `extra`"),
            ("placement", json!({ "nodes": [] }), "placement.nodes"),
            ("placement", json!({ "nodes": [1, 1] }), "twice"),
            ("nonce", json!("short"), "nonce"),
            ("required_weight", json!(2), "required_weight"),
            ("policy", json!({ "on_failure": "panic" }), "on_failure"),
            ("policy", json!({ "allow_data_loss": ["../x"] }), "is not a name"),
        ] {
            let mut wrong = document();
            wrong[field] = value;
            match read_deployment(&wrong) {
                Err(e) => assert!(e.contains(says) || field == "policy", "{field}: {e}"),
                Ok(_) => panic!("{field} was taken"),
            }
        }
    }

    #[test]
    fn windows() {
        let window = Window { not_before: Some(100), expires: 200 };
        assert_eq!(window.check(99), Err(WindowError::NotYetValid));
        assert_eq!(window.check(100), Ok(()));
        assert_eq!(window.check(200), Err(WindowError::Expired));
        let long = Window { not_before: None, expires: MAX_LIFETIME_SECS + 2 };
        assert_eq!(long.check(1), Err(WindowError::TooLong));
    }

    #[test]
    fn other_payload_types_are_not_ours() {
        assert!(Document::from_payload("application/json", b"{}").is_none());
    }
}
