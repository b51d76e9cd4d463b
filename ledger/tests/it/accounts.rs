use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use rhizome_identity::SigningKey;
use serde_json::{Value, json};

use crate::harness::{Ledger, base64_of, error, new_account, now};

fn encoded(key: &str) -> String {
    key.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

#[tokio::test]
async fn an_account_is_made_and_found_under_both_prefixes() {
    let ledger = Ledger::start().await;
    let key = SigningKey::from_seed([1; 32]);
    let mut request = new_account(&key, now());
    request["relays"] = json!(["wss://relay"]);
    request["rmb_enc_key"] = json!("abc");
    request["unknown"] = json!("ignored");
    let (status, account) = ledger.send(Method::POST, "/v1/accounts", None, &request).await;
    assert_eq!(status, 201);
    assert_eq!(account["twin_id"], 1);
    assert_eq!(account["relays"], json!(["wss://relay"]));
    assert_eq!(account["rmb_enc_key"], "abc");
    assert_eq!(account["public_key"], base64_of(&key));
    assert!(account["created_at"].as_str().unwrap().ends_with('Z'));

    let by_key = format!("accounts?public_key={}", encoded(&base64_of(&key)));
    for path in ["/v1/accounts?twin_id=1", "/api/v1/accounts?twin_id=1", "/v1/accounts/?twin_id=1"]
    {
        assert_eq!(ledger.get(path).await, (200, account.clone()), "{path}");
    }
    assert_eq!(ledger.get(&format!("/v1/{by_key}")).await, (200, account.clone()));
    assert_eq!(ledger.get(&format!("/api/v1/{by_key}")).await, (200, account));
    assert_eq!(ledger.account(2).await.id, 2, "ids count on");
}

#[tokio::test]
async fn a_second_account_of_a_key_is_a_conflict_and_uses_up_no_id() {
    let ledger = Ledger::start().await;
    let first = ledger.account(1).await;
    let again =
        ledger.send(Method::POST, "/v1/accounts", None, &new_account(&first.key, now())).await;
    assert_eq!(error(&again), (409, "account with this public key already exists"));
    assert_eq!(again.1["code"], "conflict");
    assert_eq!(ledger.account(2).await.id, 2);
}

#[tokio::test]
async fn what_is_refused_and_how() {
    let ledger = Ledger::start().await;
    let key = SigningKey::from_seed([1; 32]);
    let post = async |body: &Value| ledger.send(Method::POST, "/v1/accounts", None, body).await;
    for wrong in [json!({}), json!([]), json!({ "timestamp": "x" })] {
        assert_eq!(post(&wrong).await.0, 400);
    }
    for ahead in [-3, 4] {
        let answer = post(&new_account(&key, now() + ahead)).await;
        assert_eq!(error(&answer), (400, "timestamp outside acceptable window"));
        assert!(answer.1["detail"].as_str().unwrap().contains("clock"));
        assert!((answer.1["server_time"].as_i64().unwrap() - now()).abs() <= 1);
    }
    let with = |field: &str, value: &str| {
        let mut request = new_account(&key, now());
        request[field] = json!(value);
        request
    };
    let weak = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for key in ["", "AAAA", "!", weak] {
        assert_eq!(
            error(&post(&with("public_key", key)).await),
            (400, "invalid public key format")
        );
    }
    let answer = post(&with("signature", "!")).await;
    assert!(error(&answer).1.starts_with("invalid signature format: ") && answer.0 == 400);
    let other = new_account(&SigningKey::from_seed([2; 32]), now());
    let answer = post(&with("signature", other["signature"].as_str().unwrap())).await;
    assert!(error(&answer).1.starts_with("signature verification error: ") && answer.0 == 401);
    assert_eq!(ledger.get("/v1/accounts?twin_id=1").await.0, 404, "a refusal made an account");
}

#[tokio::test]
async fn questions_that_make_no_sense() {
    let ledger = Ledger::start().await;
    for (query, status, text) in [
        ("", 400, "must provide either twin_id or public_key parameter"),
        ("?twin_id=1&public_key=AA", 400, "provide either twin_id or public_key, not both"),
        ("?twin_id=x", 400, "invalid twin ID"),
        ("?twin_id=-1", 400, "invalid twin ID"),
        ("?twin_id=18446744073709551615", 404, "account not found"),
        ("?public_key=AA", 404, "account not found"),
    ] {
        let answer = ledger.get(&format!("/v1/accounts{query}")).await;
        assert_eq!(error(&answer), (status, text), "{query}");
    }
}

#[tokio::test]
async fn only_its_owner_changes_an_account() {
    let ledger = Ledger::start().await;
    let (owner, other) = (ledger.account(1).await, ledger.account(2).await);
    let change = json!({ "relays": ["a"], "rmb_enc_key": "k" });
    let patch = async |path: &str, who, body: Value| {
        ledger.send(Method::PATCH, path, Some(who), &body).await
    };
    let (status, done) = patch("/v1/accounts/1", &owner, change.clone()).await;
    assert_eq!((status, &done["message"]), (200, &json!("account updated successfully")));
    let (_, account) = ledger.get("/v1/accounts?twin_id=1").await;
    assert_eq!((&account["relays"], &account["rmb_enc_key"]), (&json!(["a"]), &json!("k")));
    // As with v4, what is not given is emptied.
    patch("/v1/accounts/1", &owner, json!({})).await;
    let (_, account) = ledger.get("/v1/accounts?twin_id=1").await;
    assert_eq!((&account["relays"], &account["rmb_enc_key"]), (&json!(null), &json!("")));

    assert_eq!(
        error(&patch("/v1/accounts/1", &other, change.clone()).await),
        (401, "not authorized")
    );
    assert_eq!(
        error(&patch("/v1/accounts/x", &owner, change.clone()).await),
        (400, "invalid twin ID")
    );
    let answer = patch("/v1/accounts/1", &owner, json!([])).await;
    assert!(error(&answer).1.starts_with("invalid request body") && answer.0 == 400);
    let many = json!({ "relays": vec!["r"; 33] });
    assert_eq!(patch("/v1/accounts/1", &owner, many).await.0, 400);
}

/// As `ssh-keygen` and keys on tokens sign.
#[tokio::test]
async fn an_account_is_made_by_a_signature_of_ssh_for_just_that() {
    let ledger = Ledger::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (file, text) = (folder.path().join("key"), folder.path().join("text"));
    let ssh_keygen = |args: &[&str]| {
        let mut command = std::process::Command::new("ssh-keygen");
        assert!(command.args(args).arg("-f").arg(&file).status().unwrap().success(), "{args:?}");
    };
    ssh_keygen(&["-q", "-t", "ed25519", "-N", ""]);
    let line = std::fs::read_to_string(file.with_extension("pub")).unwrap();
    let blob = STANDARD.decode(line.split(' ').nth(1).unwrap()).unwrap();
    let public_key = STANDARD.encode(&blob[blob.len() - 32..]);
    let at = now();
    std::fs::write(&text, rhizome_model::registrar::account_challenge(at, &public_key)).unwrap();
    let signed_for = |namespace: &str| {
        let signature = folder.path().join("text.sig");
        let _ = std::fs::remove_file(&signature);
        let mut command = std::process::Command::new("ssh-keygen");
        command.args(["-Y", "sign", "-n", namespace, "-f"]).arg(&file).arg(&text);
        assert!(command.output().unwrap().status.success());
        let armored = std::fs::read_to_string(signature).unwrap();
        let signature = STANDARD.encode(rhizome_identity::sshsig::dearmor(&armored).unwrap());
        json!({ "timestamp": at, "public_key": public_key, "signature": signature })
    };
    let (status, _) =
        ledger.send(Method::POST, "/v1/accounts", None, &signed_for("request@rhizome")).await;
    assert_eq!(status, 401, "signed for something else");
    let (status, account) =
        ledger.send(Method::POST, "/v1/accounts", None, &signed_for("account@rhizome")).await;
    assert_eq!((status, &account["public_key"]), (201, &json!(public_key)));
}
