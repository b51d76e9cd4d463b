//! Who may change something, and that a request counts once.

use http::Method;
use serde_json::json;

use super::{code, key, ok};
use crate::harness::{Ledger, sign};

const CLOSE: &str = r#"{"access":"closed"}"#;

#[tokio::test]
async fn a_change_is_signed_as_it_is_sent() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let farm = ledger.farm(&owner, "home").await;
    ledger.farm(&owner, "other").await;
    let path = format!("/v2/farms/{farm}/access");
    let headers = || sign(&owner.key, &Method::PUT, &path, CLOSE);
    let send = async |method: Method, path: &str, headers, body: &str| {
        ledger.with_headers(method, path, headers, body.to_owned()).await
    };
    let unsigned = send(Method::PUT, &path, http::HeaderMap::new(), CLOSE).await;
    assert_eq!(code(&unsigned), (401, "unauthenticated"));
    let body = send(Method::PUT, &path, headers(), r#"{"access":"open"}"#).await;
    assert_eq!(code(&body), (401, "unauthenticated"), "another body");
    let elsewhere = send(Method::PUT, "/v2/farms/2/access", headers(), CLOSE).await;
    assert_eq!(code(&elsewhere), (401, "unauthenticated"), "another path");
    let queried = send(Method::PUT, &format!("{path}?a=b"), headers(), CLOSE).await;
    assert_eq!(code(&queried), (401, "unauthenticated"), "another query");
    let stranger = ledger.signed(Method::PUT, &path, &key(9), CLOSE).await;
    assert_eq!(code(&stranger), (403, "unknown_account"));
    ledger.account(2).await;
    let other = ledger.signed(Method::PUT, &path, &key(2), CLOSE).await;
    assert_eq!(code(&other), (403, "unauthorised"));
    // A bearer of v4's secret can change nothing here.
    let auth = crate::harness::x_auth(&owner.key, owner.id, crate::harness::now());
    let bearer = ledger.call(Method::PUT, &path, Some(&auth), Some(CLOSE.into())).await;
    assert_eq!(code(&bearer), (401, "unauthenticated"));
    let seen = ok(ledger.get(&format!("/v2/farms/{farm}")).await);
    assert_eq!(seen["access"], "open", "a refusal changed something");
    ok(send(Method::PUT, &path, headers(), CLOSE).await);
}

#[tokio::test]
async fn a_request_counts_once_whoever_serves_and_after_a_restart() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let farm = ledger.farm(&owner, "home").await;
    let path = format!("/v2/farms/{farm}/access");
    let headers = sign(&owner.key, &Method::PUT, &path, CLOSE);
    let send = async |ledger: &Ledger| {
        ledger.with_headers(Method::PUT, &path, headers.clone(), CLOSE.into()).await
    };
    ok(send(&ledger).await);
    assert_eq!(code(&send(&ledger).await), (409, "replayed"));
    let second = ledger.beside().await;
    assert_eq!(code(&send(&second.0).await), (409, "replayed"), "another process");
    second.1.cancel();
    let ledger = ledger.restart().await;
    assert_eq!(code(&send(&ledger).await), (409, "replayed"), "after a restart");
    let log = ok(ledger.get("/v2/audit").await);
    let closed = log.as_array().unwrap().iter().filter(|e| e["action"] == "farm.close").count();
    assert_eq!(closed, 1);
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_words() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let farm = ledger.farm(&owner, "home").await;
    let send = async |method: Method, path: String, body: String| {
        ledger.signed(method, &path, &owner.key, body).await
    };
    let access = format!("/v2/farms/{farm}/access");
    for body in ["", "[]", "{}", r#"{"access":"ajar"}"#, r#"{"access":"open","x":1}"#] {
        let answer = send(Method::PUT, access.clone(), body.into()).await;
        assert_eq!(code(&answer), (400, "bad_request"), "{body}");
    }
    let large = format!(r#"{{"access":"{}"}}"#, "x".repeat(70_000));
    assert_eq!(code(&send(Method::PUT, access, large).await), (413, "too_large"));
    let missing = send(Method::PUT, "/v2/farms/99/access".into(), CLOSE.into()).await;
    assert_eq!(code(&missing), (404, "not_found"));
    for path in ["/v2/farms/x", "/v2/nodes/-1", "/v2/statements/twin/1", "/v2/nodes?farm=x"] {
        assert_eq!(code(&ledger.get(path).await), (400, "bad_request"), "{path}");
    }
    for path in ["/v2/farms/18446744073709551615", "/v2/nodes/7", "/v2/statements/account/9"] {
        assert_eq!(code(&ledger.get(path).await), (404, "not_found"), "{path}");
    }
    assert_eq!(ledger.get("/v2/audit?after=18446744073709551615").await, (200, json!([])));
}
