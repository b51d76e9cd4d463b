use rhizome_model::statement::KeyChange;
use rhizome_model::{MAX_ENVELOPE_BYTES, payload_type};
use serde_json::{Value, json};

use super::*;
use crate::SigningKey;

const NOW: i64 = 1_800_000_000;

/// A ledger with one account, 1, of the key with the seed 1 × 32; or one that cannot be reached.
struct OneAccount(Result<Account, Failure>);

#[async_trait]
impl Accounts for OneAccount {
    async fn by_key(&self, key: &KeyId) -> Result<Option<Account>, Failure> {
        self.0.clone().map(|a| a.key(key).is_some().then_some(a))
    }
    async fn by_id(&self, id: AccountId) -> Result<Option<Account>, Failure> {
        self.0.clone().map(|a| (a.id == id).then_some(a))
    }
}

fn owner() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

fn stranger() -> SigningKey {
    SigningKey::from_seed([2; 32])
}

fn ledger() -> OneAccount {
    OneAccount(Ok(Account::with_key(AccountId(1), owner().key_id(), NOW)))
}

fn document() -> Value {
    json!({
        "account": 1, "name": "demo", "version": 1, "network": "dev", "script": "}{ not a script",
        "placement": { "nodes": [1] }, "expires": NOW + 600, "nonce": "0123456789abcdef",
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut document = document();
    document[field] = value;
    document
}

fn signed(document: &Value, keys: &[SigningKey]) -> String {
    let payload = document.to_string();
    let mut envelope = keys[0].sign_envelope(payload_type::DEPLOYMENT, payload.as_bytes());
    keys[1..].iter().for_each(|k| k.add_signature(&mut envelope));
    envelope.to_json()
}

async fn code_of(bytes: &[u8]) -> Code {
    verify(bytes, &ledger(), "dev", NOW).await.expect_err("it should have been refused").code
}

#[tokio::test]
async fn what_is_in_order_passes() {
    let json = signed(&document(), &[owner()]);
    let verified = verify(json.as_bytes(), &ledger(), "dev", NOW).await.unwrap();
    assert_eq!(verified.document.deployment_id().to_string(), "1/demo");
    assert_eq!(verified.signers, [owner().key_id()]);
    assert_eq!(verified.account.id, AccountId(1));
    // Reordered and indented JSON around the same payload is the same signed content.
    let wire: Value = serde_json::from_str(&json).unwrap();
    let pretty = serde_json::to_string_pretty(&wire).unwrap();
    let again = verify(pretty.as_bytes(), &ledger(), "dev", NOW).await.unwrap();
    assert_eq!(again.digest, verified.digest);
    assert_eq!(again.envelope.payload, verified.envelope.payload);
}

#[tokio::test]
async fn a_delete_document_passes_too() {
    let payload = json!({
        "account": 1, "name": "demo", "version": 1, "network": "dev",
        "expires": NOW + 600, "nonce": "0123456789abcdef",
    });
    let json =
        owner().sign_envelope(payload_type::DELETE, payload.to_string().as_bytes()).to_json();
    let verified = verify(json.as_bytes(), &ledger(), "dev", NOW).await.unwrap();
    assert!(matches!(verified.document, Document::Delete(_)));
}

#[tokio::test]
async fn each_refusal_has_its_own_code() {
    let large = vec![b' '; MAX_ENVELOPE_BYTES + 1];
    assert_eq!(code_of(&large).await, Code::TooLarge);
    assert_eq!(code_of(b"{}").await, Code::BadEnvelope);
    let other = owner().sign_envelope("application/json", b"{}").to_json();
    assert_eq!(code_of(other.as_bytes()).await, Code::UnknownPayloadType);
    let operation = owner().sign_envelope(payload_type::OPERATION, b"{}").to_json();
    assert_eq!(code_of(operation.as_bytes()).await, Code::InvalidDocument);

    let mut tampered =
        owner().sign_envelope(payload_type::DEPLOYMENT, document().to_string().as_bytes());
    tampered.payload[30] ^= 1;
    assert_eq!(code_of(tampered.to_json().as_bytes()).await, Code::BadSignature);

    for (document, keys, code) in [
        (with("surprise", json!(1)), [owner()], Code::InvalidDocument),
        (with("expires", json!(NOW + 40 * 24 * 3600)), [owner()], Code::InvalidDocument),
        (with("network", json!("main")), [owner()], Code::WrongNetwork),
        (with("expires", json!(NOW)), [owner()], Code::Expired),
        (with("expires", json!(i64::MIN)), [owner()], Code::Expired),
        (with("not_before", json!(NOW + 1)), [owner()], Code::NotYetValid),
        (with("account", json!(2)), [owner()], Code::UnknownAccount),
        (document(), [stranger()], Code::Unauthorised),
    ] {
        assert_eq!(code_of(signed(&document, &keys).as_bytes()).await, code, "{document}");
    }
}

/// Each step wins over every later one: an envelope that is wrong from some step on is refused by
/// that step.
#[tokio::test]
async fn the_order_is_fixed() {
    let mut wrong = document();
    wrong["account"] = json!(2);
    let mut codes = vec![code_of(signed(&wrong, &[stranger()]).as_bytes()).await];
    wrong["expires"] = json!(NOW - 1);
    codes.push(code_of(signed(&wrong, &[stranger()]).as_bytes()).await);
    wrong["network"] = json!("main");
    codes.push(code_of(signed(&wrong, &[stranger()]).as_bytes()).await);
    wrong["surprise"] = json!(1);
    codes.push(code_of(signed(&wrong, &[stranger()]).as_bytes()).await);
    let mut envelope =
        stranger().sign_envelope(payload_type::DEPLOYMENT, wrong.to_string().as_bytes());
    envelope.signatures[0].sig[0] ^= 1;
    codes.push(code_of(envelope.to_json().as_bytes()).await);
    envelope.payload_type = "text/plain".into();
    codes.push(code_of(envelope.to_json().as_bytes()).await);
    envelope.signatures.clear();
    codes.push(code_of(envelope.to_json().as_bytes()).await);
    let large = format!("{}{}", envelope.to_json(), " ".repeat(MAX_ENVELOPE_BYTES));
    codes.push(code_of(large.as_bytes()).await);
    assert_eq!(
        codes,
        [
            Code::UnknownAccount,
            Code::Expired,
            Code::WrongNetwork,
            Code::InvalidDocument,
            Code::BadSignature,
            Code::UnknownPayloadType,
            Code::BadEnvelope,
            Code::TooLarge,
        ]
    );
}

#[tokio::test]
async fn co_signers_and_weights() {
    let [a, b] = [[3; 32], [4; 32]].map(SigningKey::from_seed);
    let mut document = document();
    document["cosigners"] = json!([
        { "key": a.key_id(), "weight": 2, "required": true },
        { "key": a.key_id(), "weight": 2 },
        { "key": b.key_id() },
        { "key": owner().key_id(), "weight": 5 },
    ]);
    document["required_weight"] = json!(4);
    for (keys, passes) in [
        (vec![owner()], false),
        (vec![owner(), a.clone()], false), // 1 + 2: listed twice weighs once
        (vec![owner(), b.clone(), stranger()], false), // a is required
        (vec![a.clone(), b.clone()], false), // the owner has not signed
        (vec![owner(), a.clone(), b.clone()], true),
        (vec![b, stranger(), a, owner()], true),
    ] {
        let json = signed(&document, &keys);
        let result = verify(json.as_bytes(), &ledger(), "dev", NOW).await;
        match result {
            Ok(_) => assert!(passes, "{keys:?}"),
            Err(e) => assert!(!passes && e.code == Code::Unauthorised, "{keys:?}: {e}"),
        }
    }
}

#[tokio::test]
async fn a_ledger_that_is_away_is_not_an_unknown_account() {
    let away = OneAccount(Err(Failure::new(Code::Unavailable, "cannot reach ledger")));
    let json = signed(&document(), &[owner()]);
    let failure = verify(json.as_bytes(), &away, "dev", NOW).await.unwrap_err();
    assert_eq!(failure.code, Code::Unavailable);
}

#[tokio::test]
async fn a_key_that_has_ended_signs_nothing_any_more() {
    let (old, new, other) = (owner(), stranger(), SigningKey::from_seed([3; 32]));
    let [o, n, x] = [&old, &new, &other].map(SigningKey::key_id);
    let account = Account::with_key(AccountId(1), o, NOW);
    let changed = |account: &Account, change, signers: &[KeyId]| {
        account.changed(&change, signers, NOW).unwrap()
    };
    let add = KeyChange::Add { key: x, weight: 3 };
    let rotated = changed(&account, KeyChange::Rotate { old: o, new: n }, &[o, n]);
    let revoked = changed(&changed(&account, add, &[o, x]), KeyChange::Revoke { key: o }, &[x]);
    let none = changed(&account, KeyChange::Revoke { key: o }, &[o]);
    let code = async |account: &Account, document: &Value, keys: &[SigningKey]| {
        let ledger = OneAccount(Ok(account.clone()));
        let json = signed(document, keys);
        verify(json.as_bytes(), &ledger, "dev", NOW).await.err().map(|f| f.code)
    };
    let document = document();
    for account in [&rotated, &revoked] {
        assert_eq!(code(account, &document, &[owner()]).await, Some(Code::RevokedKey));
        let key = active_account(&OneAccount(Ok(account.clone())), &o).await.unwrap_err();
        assert_eq!(key.code, Code::RevokedKey);
    }
    assert_eq!(code(&none, &document, &[owner()]).await, Some(Code::RevokedAccount));
    assert_eq!(code(&none, &document, &[stranger()]).await, Some(Code::RevokedAccount));
    assert_eq!(code(&rotated, &document, &[stranger()]).await, None);
    assert_eq!(code(&revoked, &document, &[stranger()]).await, Some(Code::Unauthorised));
    // It does not count as a co-signer either, beside a key that does.
    let mut cosigned = with("cosigners", json!([{ "key": o, "weight": 1 }]));
    cosigned["required_weight"] = json!(2);
    let both = [owner(), SigningKey::from_seed([3; 32])];
    assert_eq!(code(&revoked, &cosigned, &both).await, Some(Code::Unauthorised));
}
