//! `/v2`: what is signed, by whom, and what comes of it.

mod audit;
mod farms;
mod keys;
mod nodes;
mod signed;
mod statements;
mod usage;

use rhizome_identity::SigningKey;
use rhizome_model::statement::{KeyChange, KeyDocument, payload_type};
use rhizome_model::{AccountId, KeyId};
use serde_json::Value;

use crate::harness::{Answer, Ledger, now};

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

pub fn id(seed: u8) -> KeyId {
    key(seed).key_id()
}

/// The code of a refusal, with its status.
pub fn code(answer: &Answer) -> (u16, &str) {
    (answer.0, answer.1["code"].as_str().unwrap_or_else(|| panic!("no refusal: {answer:?}")))
}

pub fn ok(answer: Answer) -> Value {
    assert!((200..300).contains(&answer.0), "{answer:?}");
    answer.1
}

/// A change of keys that these have signed.
pub fn key_document(account: u64, change: KeyChange, nonce: &str, signers: &[u8]) -> String {
    let document = KeyDocument {
        network: "dev".into(),
        account: AccountId(account),
        change,
        expires: now() + 600,
        nonce: nonce.into(),
    };
    envelope(&document, signers)
}

pub fn envelope(document: &KeyDocument, signers: &[u8]) -> String {
    let payload = serde_json::to_vec(document).unwrap();
    let mut envelope = key(signers[0]).sign_envelope(payload_type::KEYS, &payload);
    signers[1..].iter().for_each(|seed| key(*seed).add_signature(&mut envelope));
    envelope.to_json()
}

impl Ledger {
    /// Changes keys; the first of the signers makes the request.
    pub async fn change_keys(&self, account: u64, change: KeyChange, signers: &[u8]) -> Answer {
        let nonce = format!("{:032x}", fastrand::u128(..));
        let body = key_document(account, change, &nonce, signers);
        let path = format!("/v2/accounts/{account}/keys");
        self.signed(http::Method::POST, &path, &key(signers[0]), body).await
    }
}
