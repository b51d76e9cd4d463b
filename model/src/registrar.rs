//! The ledger's wire format: the registrar's v4 API, whose clients keep working with ours.
//!
//! Replies are complete. Requests leave out nothing that v4 asks for; what a request lacks is
//! refused by the ledger itself, in the words of v4. Unknown fields are ignored, as v4 does.
//! `supervisor_url` and `public_key` of a node are ours; v4 clients ignore them.

use serde::{Deserialize, Deserializer, Serialize};

use crate::{AccountId, FarmId, KeyId, NodeId};

/// A node is online when it reported its uptime within this time.
pub const ONLINE_MINUTES: i64 = 40;

/// What must be signed with the new account's key, as `signature`.
pub fn account_challenge(timestamp: i64, public_key: &str) -> String {
    format!("{timestamp}:{public_key}")
}

/// What must be signed for `X-Auth`.
pub fn auth_challenge(timestamp: i64, account: AccountId) -> String {
    format!("{timestamp}:{account}")
}

/// A request for an account.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewAccount {
    /// Unix seconds, at most 2 away from the ledger's.
    pub timestamp: i64,
    /// Base64 of the 32 bytes of an Ed25519 key.
    pub public_key: String,
    /// Base64 of the signature over `TIMESTAMP:PUBLIC_KEY`.
    pub signature: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relays: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rmb_enc_key: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Account {
    pub twin_id: AccountId,
    pub relays: Option<Vec<String>>,
    pub rmb_enc_key: String,
    /// RFC 3339.
    pub created_at: String,
    pub updated_at: String,
    #[serde(with = "base64_key")]
    #[schema(value_type = String)]
    pub public_key: KeyId,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccountUpdate {
    #[serde(default)]
    pub relays: Option<Vec<String>>,
    #[serde(default)]
    pub rmb_enc_key: Option<String>,
}

/// A request for a farm.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewFarm {
    pub farm_name: String,
    pub twin_id: AccountId,
    /// Where it is paid to. With v4 always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stellar_address: Option<String>,
    #[serde(default)]
    pub dedicated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Farm {
    pub farm_id: FarmId,
    pub farm_name: String,
    pub twin_id: AccountId,
    pub stellar_address: String,
    pub dedicated: bool,
    pub created_at: String,
    pub updated_at: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FarmUpdate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub farm_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stellar_address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedicated: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FarmCreated {
    pub farm_id: FarmId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeCreated {
    pub node_id: NodeId,
}

/// The acknowledgement of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Acknowledged {
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Location {
    pub country: String,
    pub city: String,
    pub longitude: String,
    pub latitude: String,
}

/// What a node has: bytes on disks, bytes on SSDs, processors, bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Resources {
    pub hru: u64,
    pub sru: u64,
    pub cru: u64,
    pub mru: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Interface {
    pub name: String,
    pub mac: String,
    #[serde(deserialize_with = "addresses")]
    pub ips: Vec<String>,
}

/// What a node says about itself when it registers and when something of it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeRegistration {
    /// Ignored in a change: a node stays with its account.
    #[serde(default = "no_account")]
    pub twin_id: AccountId,
    pub farm_id: FarmId,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default)]
    pub location: Location,
    #[serde(alias = "Interfaces")]
    pub interfaces: Vec<Interface>,
    #[serde(default)]
    pub secure_boot: bool,
    #[serde(default)]
    pub virtualized: bool,
    pub serial_number: String,
    /// Where its supervisor listens, such as `http://[5d3:…]:8100`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor_url: Option<String>,
}

fn no_account() -> AccountId {
    AccountId(0)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Node {
    pub node_id: NodeId,
    pub farm_id: FarmId,
    pub twin_id: AccountId,
    pub location: Location,
    pub resources: Resources,
    // v4 writes it with a capital letter.
    #[serde(rename = "Interfaces", alias = "interfaces")]
    pub interfaces: Vec<Interface>,
    pub secure_boot: bool,
    pub virtualized: bool,
    pub serial_number: String,
    /// RFC 3339; none before the first report.
    pub last_seen: Option<String>,
    pub online: bool,
    pub created_at: String,
    pub updated_at: String,
    pub approved: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor_url: Option<String>,
    /// The key of the node's account.
    #[serde(with = "base64_key")]
    #[schema(value_type = String)]
    pub public_key: KeyId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UptimeReport {
    /// Seconds since the node's kernel started.
    pub uptime: u64,
    /// Unix seconds, at most 60 away from the ledger's.
    pub timestamp: i64,
}

/// Base64 of `{"version": …, "safe_to_upgrade": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ZosVersion {
    pub version: String,
}

/// A list, the text "a/b", or null: v4 clients fall back to the text.
fn addresses<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        List(Vec<String>),
        Text(String),
        Null(()),
    }
    Ok(match Form::deserialize(d)? {
        Form::List(list) => list,
        Form::Text(text) => text.split('/').filter(|s| !s.is_empty()).map(Into::into).collect(),
        Form::Null(()) => Vec::new(),
    })
}

/// An Ed25519 key as the registrar writes it: padded standard base64.
pub mod base64_key {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::KeyId;

    pub fn encode(key: &KeyId) -> String {
        STANDARD.encode(key.0)
    }

    pub fn decode(text: &str) -> Option<KeyId> {
        STANDARD.decode(text).ok()?.try_into().ok().map(KeyId)
    }

    pub fn serialize<S: Serializer>(key: &KeyId, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&encode(key))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<KeyId, D::Error> {
        let text = String::deserialize(d)?;
        decode(&text).ok_or_else(|| serde::de::Error::custom("not the base64 of a 32-byte key"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms_of_addresses_are_read() {
        for (ips, read) in [
            (json!(["10.0.0.1", "::1"]), vec!["10.0.0.1", "::1"]),
            (json!("10.0.0.1/::1"), vec!["10.0.0.1", "::1"]),
            (json!(""), vec![]),
            (json!(null), vec![]),
        ] {
            let interface: Interface =
                serde_json::from_value(json!({ "name": "eth0", "mac": "m", "ips": ips })).unwrap();
            assert_eq!(interface.ips, read);
        }
    }

    #[test]
    fn a_key_is_padded_base64() {
        let text = "NFBx2lXl3M76qkQDOUFe+fJmMzijj32g3yG+WrTgVe8=";
        let key = base64_key::decode(text).unwrap();
        assert_eq!(
            key.to_string(),
            "345071da55e5dccefaaa440339415ef9f2663338a38f7da0df21be5ab4e055ef"
        );
        assert_eq!(base64_key::encode(&key), text);
        assert_eq!(base64_key::decode(text.trim_end_matches('=')), None);
        assert_eq!(base64_key::decode("AAAA"), None);
    }
}
