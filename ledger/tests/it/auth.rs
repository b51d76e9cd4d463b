use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::json;

use crate::harness::{Ledger, error, now, stellar, x_auth};

/// Every check of `X-Auth`, in v4's order and words.
#[tokio::test]
async fn each_refusal_in_its_words() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let signed = |text: &str| {
        format!("{}:{}", STANDARD.encode(text), STANDARD.encode(owner.key.sign(text.as_bytes())))
    };
    let good = x_auth(&owner.key, owner.id, now());
    let (challenge, signature) = good.split_once(':').unwrap();
    let failed = "Signature verification failed: signature verification failed";
    for (header, status, text) in [
        (None, 401, "Authorization header required"),
        (Some(String::new()), 401, "Authorization header required"),
        (Some("abc".into()), 400, "Invalid header format. Use 'Challenge:Signature'"),
        (Some("a:b:c".into()), 400, "Invalid header format. Use 'Challenge:Signature'"),
        (Some(format!("!:{signature}")), 400, "Invalid challenge encoding"),
        (Some(signed("12")), 400, "Invalid challenge format"),
        (Some(signed("1:2:3")), 400, "Invalid challenge format"),
        (Some(signed("x:1")), 400, "Invalid timestamp"),
        (Some(signed(&format!("{}:1", now() - 62))), 401, "Expired challenge"),
        (Some(signed(&format!("{}:1", now() + 65))), 401, "Challenge from the future"),
        (Some(signed("4102444800:1")), 401, "Challenge from the future"),
        (Some(signed(&format!("{}:x", now()))), 400, "Invalid twin ID format"),
        (Some(signed(&format!("{}:99", now()))), 404, "Account not found"),
        (Some(format!("{challenge}:!")), 400, "Invalid signature encoding"),
        (Some(format!("{challenge}:AAAA")), 401, failed),
        (
            Some(x_auth(&owner.key, 1, now()).replacen(':', ":A", 1)),
            400,
            "Invalid signature encoding",
        ),
    ] {
        let body = json!({ "farm_name": "a", "twin_id": 1, "stellar_address": stellar() });
        let answer =
            ledger.call(Method::POST, "/v1/farms", header.as_deref(), Some(body.to_string())).await;
        assert_eq!(error(&answer), (status, text), "{header:?}");
    }
    assert_eq!(ledger.get("/v1/farms").await, (200, json!([])));
}

#[tokio::test]
async fn the_signature_of_another_account_does_not_count() {
    let ledger = Ledger::start().await;
    let (owner, other) = (ledger.account(1).await, ledger.account(2).await);
    let forged = x_auth(&other.key, owner.id, now());
    let body = json!({ "farm_name": "a", "twin_id": owner.id, "stellar_address": stellar() });
    let answer =
        ledger.call(Method::POST, "/v1/farms", Some(&forged), Some(body.to_string())).await;
    assert_eq!(answer.0, 401);
}

/// Every route that changes something wants it, and asks for it before anything else.
#[tokio::test]
async fn no_change_without_it() {
    let ledger = Ledger::start().await;
    for (method, path) in [
        (Method::PATCH, "/v1/accounts/1"),
        (Method::POST, "/v1/farms"),
        (Method::POST, "/v1/farms/"),
        (Method::PATCH, "/v1/farms/1"),
        (Method::POST, "/v1/nodes"),
        (Method::PATCH, "/v1/nodes/1"),
        (Method::POST, "/v1/nodes/1/uptime"),
        (Method::POST, "/api/v1/nodes/1/uptime"),
    ] {
        let answer = ledger.call(method, path, None, Some("junk".into())).await;
        assert_eq!(error(&answer), (401, "Authorization header required"), "{path}");
    }
}
