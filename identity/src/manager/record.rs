//! One copy of a node's identity, as it is on disk.
//!
//! ```text
//!   rhizome-identity 1 BLAKE3-OF-THE-REST
//!   { "generation": 7, "key": …, "secret": { "sealed": … }, "registered": … }
//! ```
//!
//! The checksum tells a torn or rotten copy; it is no protection against who can write the file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::KeyId;
use rhizome_model::api::Registered;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::SigningKey;

const MAGIC: &str = "rhizome-identity 1 ";
/// A key, a sealed blob and three ids; whatever is longer is something else.
pub const MAX_BYTES: u64 = 16 * 1024;

/// What is kept of a node's identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Counts the changes: the copy with the highest is the newest.
    pub generation: u64,
    pub key: KeyId,
    /// Of the machine that it was made on.
    pub serial_number: String,
    pub secret: Secret,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<Registered>,
}

/// How the private key is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Secret {
    /// As it is: the file's mode protects it.
    Plain(#[serde(serialize_with = "write_seed", deserialize_with = "read_seed")] SigningKey),
    /// Only the TPM that made this opens it.
    Sealed(#[serde(serialize_with = "write_blob", deserialize_with = "read_blob")] Vec<u8>),
}

impl Record {
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let body = serde_json::to_vec(self).expect("ids and texts have a JSON form");
        let body = Zeroizing::new(body);
        let mut bytes = format!("{MAGIC}{}\n", blake3::hash(&body).to_hex()).into_bytes();
        bytes.extend_from_slice(&body);
        bytes.push(b'\n');
        Zeroizing::new(bytes)
    }

    /// `Err` says what is wrong with it, never what is in it.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let rest = bytes.strip_prefix(MAGIC.as_bytes()).ok_or("it does not begin like one")?;
        let (checksum, body) = rest.split_at_checked(65).ok_or("it is cut off")?;
        let body = body.strip_suffix(b"\n").ok_or("it is cut off")?;
        if checksum != format!("{}\n", blake3::hash(body).to_hex()).as_bytes() {
            return Err("its checksum does not fit");
        }
        let record: Self =
            serde_json::from_slice(body).map_err(|_| "it is of a form that we do not know")?;
        match &record.secret {
            Secret::Plain(key) if key.key_id() != record.key => Err("its halves differ"),
            _ => Ok(record),
        }
    }
}

fn write_seed<S: Serializer>(key: &SigningKey, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&key.to_hex_seed())
}

fn read_seed<'de, D: Deserializer<'de>>(d: D) -> Result<SigningKey, D::Error> {
    let text = Zeroizing::new(String::deserialize(d)?);
    SigningKey::from_hex_seed(&text).map_err(serde::de::Error::custom)
}

fn write_blob<S: Serializer>(blob: &[u8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&STANDARD.encode(blob))
}

fn read_blob<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
    STANDARD.decode(String::deserialize(d)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_changed_or_cut_off_is_noticed() {
        let key = SigningKey::from_seed([7; 32]);
        let record = Record {
            generation: 3,
            key: key.key_id(),
            serial_number: "S1".into(),
            secret: Secret::Plain(key.clone()),
            registered: None,
        };
        let good = record.encode();
        assert_eq!(Record::decode(&good).unwrap().generation, 3);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Record::decode(&bad).is_err(), "byte {at}");
            assert!(Record::decode(&good[..at]).is_err(), "cut at {at}");
        }
        let other = Record { key: SigningKey::from_seed([8; 32]).key_id(), ..record };
        assert_eq!(Record::decode(&other.encode()).unwrap_err(), "its halves differ");
        assert!(!format!("{other:?}").contains(&key.to_hex_seed()[..16]));
    }
}
