use http::Method;
use rhizome_model::AccountId;
use rhizome_model::statement::{KeyChange, KeyDocument};
use serde_json::{Value, json};

use super::{code, envelope, id, key, key_document, ok};
use crate::harness::{Caller, Ledger, base64_of, new_account, new_node, now};

fn rotate(old: u8, new: u8) -> KeyChange {
    KeyChange::Rotate { old: id(old), new: id(new) }
}

fn add(seed: u8) -> KeyChange {
    KeyChange::Add { key: id(seed), weight: 1 }
}

fn revoke(seed: u8) -> KeyChange {
    KeyChange::Revoke { key: id(seed) }
}

#[tokio::test]
async fn a_rotated_key_is_the_accounts_on_every_route() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let farm = ledger.farm(&owner, "home").await;
    let node = ledger.node(&owner, farm).await;
    let account = ok(ledger.change_keys(owner.id, rotate(1, 2), &[1, 2]).await);
    assert_eq!(account["keys"][0]["key"], json!(id(2)));
    assert_eq!(account["keys"][1]["ended"]["how"], "rotated");
    assert_eq!(ok(ledger.get("/v2/accounts/1").await), account, "the history is kept");

    let v1 = ok(ledger.get("/v1/accounts?twin_id=1").await);
    assert_eq!(v1["public_key"], json!(base64_of(&key(2))));
    let seen = ok(ledger.get(&format!("/v2/nodes/{node}")).await);
    assert_eq!(seen["key"], json!(id(2)));
    let address = rhizome_identity::mycelium_address(&id(2)).unwrap();
    assert_eq!(seen["address"], json!(address));

    // The old key does nothing any more, the new one everything.
    let update = new_node(owner.id, farm);
    let path = format!("/v1/nodes/{node}");
    let (status, _) = ledger.send(Method::PATCH, &path, Some(&owner), &update).await;
    assert_eq!(status, 401);
    let renewed = Caller { key: key(2), id: owner.id };
    ok(ledger.send(Method::PATCH, &path, Some(&renewed), &update).await);
    let access = format!("/v2/farms/{farm}/access");
    let old = ledger.signed(Method::PUT, &access, &key(1), r#"{"access":"closed"}"#).await;
    assert_eq!(code(&old), (403, "revoked_key"));
    ok(ledger.signed(Method::PUT, &access, &key(2), r#"{"access":"closed"}"#).await);
    // Nor does it become somebody else's.
    let again = new_account(&key(1), now());
    let (status, _) = ledger.send(Method::POST, "/v1/accounts", None, &again).await;
    assert_eq!(status, 409);
}

#[tokio::test]
async fn rotation_needs_both_keys_and_a_key_of_nobody() {
    let ledger = Ledger::start().await;
    let (a, b) = (ledger.account(1).await, ledger.account(2).await);
    let one = ledger.change_keys(a.id, rotate(1, 3), &[1]).await;
    assert_eq!(code(&one), (403, "unauthorised"));
    let not_ours = ledger.change_keys(a.id, rotate(1, 3), &[3, 1]).await;
    assert_eq!(code(&not_ours), (403, "unknown_account"), "the new key makes no request");
    let foreign = ledger.change_keys(a.id, rotate(2, 3), &[2, 3]).await;
    assert_eq!(code(&foreign), (403, "unauthorised"), "of another account");
    let taken = ledger.change_keys(a.id, rotate(1, 2), &[1, 2]).await;
    assert_eq!(code(&taken), (409, "conflict"), "the key is account 2's");
    assert_eq!(ok(ledger.get("/v2/accounts/1").await)["keys"].as_array().unwrap().len(), 1);
    ok(ledger.change_keys(a.id, rotate(1, 3), &[1, 3]).await);
    let back = ledger.change_keys(b.id, rotate(2, 1), &[2, 1]).await;
    assert_eq!(code(&back), (409, "conflict"), "the key was account 1's");
}

#[tokio::test]
async fn two_of_three_revoke_and_one_does_not() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await.id;
    ok(ledger.change_keys(owner, add(2), &[1, 2]).await);
    ok(ledger.change_keys(owner, add(3), &[2, 3]).await);
    ok(ledger.change_keys(owner, KeyChange::Threshold { weight: 2 }, &[1]).await);
    let alone = ledger.change_keys(owner, revoke(1), &[2]).await;
    assert_eq!(code(&alone), (403, "unauthorised"));
    let account = ok(ledger.change_keys(owner, revoke(1), &[2, 3]).await);
    assert_eq!(account["keys"][0]["ended"]["how"], "revoked");
    let v1 = ok(ledger.get("/v1/accounts?twin_id=1").await);
    assert_eq!(v1["public_key"], json!(base64_of(&key(2))), "the next one stands for it");
    let by_other = base64_of(&key(3)).replace('+', "%2B");
    let found = ok(ledger.get(&format!("/v1/accounts?public_key={by_other}")).await);
    assert_eq!(found["twin_id"], 1);
}

#[tokio::test]
async fn an_account_without_keys_does_nothing() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let farm = ledger.farm(&owner, "home").await;
    ok(ledger.change_keys(owner.id, revoke(1), &[1]).await);
    let again = ledger.change_keys(owner.id, add(2), &[1, 2]).await;
    assert_eq!(code(&again), (403, "revoked_account"));
    let path = format!("/v1/farms/{farm}");
    let name = json!({ "farm_name": "other" });
    assert_eq!(ledger.send(Method::PATCH, &path, Some(&owner), &name).await.0, 401);
    let (status, _) =
        ledger.send(Method::POST, "/v1/accounts", None, &new_account(&key(1), now())).await;
    assert_eq!(status, 409);
}

#[tokio::test]
async fn a_change_of_keys_counts_once_here_and_in_time() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await.id;
    let body = key_document(owner, add(2), "0123456789abcdef", &[1, 2]);
    let post =
        async |body: &str| ledger.signed(Method::POST, "/v2/accounts/1/keys", &key(1), body).await;
    ok(post(&body).await);
    assert_eq!(code(&post(&body).await), (409, "replayed"), "another request, the same document");
    let document = KeyDocument {
        network: "dev".into(),
        account: AccountId(owner),
        change: add(3),
        expires: now() + 600,
        nonce: "fedcba9876543210".into(),
    };
    for (wrong, expected) in [
        (KeyDocument { network: "main".into(), ..document.clone() }, "wrong_network"),
        (KeyDocument { expires: now() - 1, ..document.clone() }, "expired"),
        (KeyDocument { expires: now() + 30 * 86_400, ..document.clone() }, "expired"),
        (KeyDocument { account: AccountId(2), ..document.clone() }, "unauthorised"),
        (KeyDocument { nonce: "short".into(), ..document.clone() }, "invalid_document"),
    ] {
        let answer = post(&envelope(&wrong, &[1, 3])).await;
        assert_eq!(code(&answer).1, expected, "{wrong:?}");
    }
    let mut forged: Value = serde_json::from_str(&envelope(&document, &[1, 3])).unwrap();
    forged["signatures"][1]["keyid"] = json!(id(4));
    assert_eq!(code(&post(&forged.to_string()).await).1, "bad_signature");
    let other = key(1).sign_envelope("application/json", b"{}").to_json();
    assert_eq!(code(&post(&other).await).1, "unknown_payload_type");
    assert_eq!(code(&post("{}").await).1, "bad_envelope");
}
