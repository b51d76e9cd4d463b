//! From bytes to what the ledger said, and the other way round.

use rhizome_model::statement::Signed;
use rhizome_model::{Code, Envelope, Failure, KeyId};
use serde::Serialize;

use crate::{SigningKey, verify_bytes};

/// The envelope around what the ledger says.
pub fn sign_statement<T: Signed + Serialize>(
    key: &SigningKey,
    says: &T,
) -> Result<String, Failure> {
    let payload = serde_json::to_vec(says)
        .map_err(|e| Failure::new(Code::Internal, format!("cannot write a statement: {e}")))?;
    Ok(key.sign_envelope(T::PAYLOAD_TYPE, &payload).to_json())
}

/// What the ledger with this key said about this network, unless it has expired. `now` is in Unix
/// seconds.
pub fn open_signed<T: Signed>(
    bytes: &[u8],
    key: &KeyId,
    network: &str,
    now: i64,
) -> Result<T, Failure> {
    let said: T = open_any_age(bytes, key, network)?;
    if said.expires() <= now {
        let message = format!(
            "what the ledger said has expired {} s ago; are the clocks right?",
            now.saturating_sub(said.expires())
        );
        return Err(Failure::new(Code::BadStatement, message));
    }
    Ok(said)
}

/// The same, however old: what was kept may have been renewed since.
pub(super) fn open_any_age<T: Signed>(
    bytes: &[u8],
    key: &KeyId,
    network: &str,
) -> Result<T, Failure> {
    let refuse = |message: String| Failure::new(Code::BadStatement, message);
    let envelope = Envelope::from_json(bytes).map_err(|e| refuse(e.to_string()))?;
    if envelope.payload_type != T::PAYLOAD_TYPE {
        let kind: String = envelope.payload_type.chars().take(100).collect();
        return Err(refuse(format!("the payload type {kind:?} is not {}", T::PAYLOAD_TYPE)));
    }
    let [signature] = envelope.signatures.as_slice() else {
        return Err(refuse("the ledger signs once".into()));
    };
    if signature.keyid != key.to_string() {
        let signer: String = signature.keyid.chars().filter(|c| !c.is_control()).take(64).collect();
        return Err(refuse(format!(
            "it is signed with the key {signer}, and the ledger's key is {key}; if the ledger has \
             been given another key, tell it with --ledger-key"
        )));
    }
    verify_bytes(key, &envelope.pae(), &signature.sig)
        .map_err(|_| refuse("the ledger's signature does not fit what was said".into()))?;
    let said: T = serde_json::from_slice(&envelope.payload)
        .map_err(|e| refuse(format!("what the ledger signed is not understood: {e}")))?;
    if said.network() != network {
        let theirs: String = said.network().chars().take(40).collect();
        return Err(refuse(format!("it was said for the network {theirs:?}; this is {network:?}")));
    }
    if said.issued_at() > said.expires() {
        return Err(refuse("it expired before it was said".into()));
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rhizome_model::AccountId;
    use rhizome_model::statement::{Account, Changes, Says, Statement};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn key() -> SigningKey {
        SigningKey::from_seed([9; 32])
    }

    fn statement() -> Statement {
        Statement {
            network: "dev".into(),
            revision: 1,
            as_of: 2,
            issued_at: NOW,
            expires: NOW + 60,
            says: Says::Account(Account::with_key(AccountId(7), key().key_id(), NOW)),
        }
    }

    fn code(bytes: &[u8], key: &SigningKey, network: &str, now: i64) -> Option<Code> {
        open_signed::<Statement>(bytes, &key.key_id(), network, now).err().map(|f| f.code)
    }

    #[test]
    fn only_the_ledgers_word_for_this_network_counts_and_not_for_ever() {
        let json = sign_statement(&key(), &statement()).unwrap();
        let other = SigningKey::from_seed([8; 32]);
        let bad = Some(Code::BadStatement);
        assert_eq!(code(json.as_bytes(), &key(), "dev", NOW), None);
        assert_eq!(code(json.as_bytes(), &key(), "dev", NOW + 60), bad, "expired");
        assert_eq!(code(json.as_bytes(), &key(), "main", NOW), bad, "foreign network");
        assert_eq!(code(json.as_bytes(), &other, "dev", NOW), bad, "foreign ledger");
        let claimed = json.replace(&key().key_id().to_string(), &other.key_id().to_string());
        assert_eq!(code(claimed.as_bytes(), &other, "dev", NOW), bad, "the keyid is only a hint");
        let forged = sign_statement(&other, &statement()).unwrap();
        assert_eq!(code(forged.as_bytes(), &key(), "dev", NOW), bad, "forged");
        let mut twice = Envelope::from_json(json.as_bytes()).unwrap();
        other.add_signature(&mut twice);
        assert_eq!(code(twice.to_json().as_bytes(), &key(), "dev", NOW), bad, "a second signature");
    }

    #[test]
    fn what_is_signed_as_one_thing_is_nothing_else() {
        let json = sign_statement(&key(), &statement()).unwrap();
        let as_changes = open_signed::<Changes>(json.as_bytes(), &key().key_id(), "dev", NOW);
        assert_eq!(as_changes.unwrap_err().code, Code::BadStatement);
        let payload = serde_json::to_vec(&statement()).unwrap();
        let other = key().sign_envelope("application/json", &payload).to_json();
        assert_eq!(code(other.as_bytes(), &key(), "dev", NOW), Some(Code::BadStatement));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            prop_assert_eq!(code(&bytes, &key(), "dev", NOW), Some(Code::BadStatement));
        }
    }
}
