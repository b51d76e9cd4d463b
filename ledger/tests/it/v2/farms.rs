use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use rhizome_model::AccountId;
use rhizome_model::api::CoordinatorRegistration;
use serde_json::{Value, json};

use super::{code, id, key, ok};
use crate::harness::{Answer, Ledger, now};

fn grant(account: u64, node: Option<u64>, until: Option<i64>) -> String {
    let capacity = json!({ "cpu": 2, "memory": "1GiB", "disk": "10GiB" });
    json!({ "account": account, "node": node, "capacity": capacity, "until": until }).to_string()
}

#[tokio::test]
async fn its_owner_grants_and_takes_back() {
    let ledger = Ledger::start().await;
    let (owner, tenant) = (ledger.account(1).await, ledger.account(2).await);
    let farm = ledger.farm(&owner, "home").await;
    let node = ledger.node(&tenant, farm).await;
    let path = format!("/v2/farms/{farm}/grants");
    let give = async |body: String| ledger.signed(Method::POST, &path, &owner.key, body).await;
    let given = ok(give(grant(tenant.id, Some(node), Some(now() + 600))).await);
    assert_eq!((&given["id"], &given["capacity"]["memory"]), (&json!(1), &json!(1u64 << 30)));
    let seen = ok(ledger.get(&format!("/v2/farms/{farm}")).await);
    assert_eq!(seen["grants"], json!([given]));

    assert_eq!(code(&give(grant(99, None, None)).await), (404, "not_found"));
    assert_eq!(code(&give(grant(2, Some(99), None)).await), (404, "not_found"));
    assert_eq!(code(&give(grant(2, None, Some(now() - 1))).await), (400, "bad_request"));
    let huge = grant(2, None, None).replace("\"1GiB\"", "18446744073709551615");
    assert_eq!(code(&give(huge).await), (400, "bad_request"));
    let other = ledger.signed(Method::POST, &path, &tenant.key, grant(2, None, None)).await;
    assert_eq!(code(&other), (403, "unauthorised"));

    let one = format!("{path}/1");
    let stranger = ledger.signed(Method::DELETE, &one, &tenant.key, "").await;
    assert_eq!(code(&stranger), (403, "unauthorised"));
    let left = ok(ledger.signed(Method::DELETE, &one, &owner.key, "").await);
    assert_eq!(left["grants"], json!([]));
    let again = ledger.signed(Method::DELETE, &one, &owner.key, "").await;
    assert_eq!(code(&again), (404, "not_found"));
}

fn registration(coordinator: u8, account: u64, url: &str) -> String {
    let claim = CoordinatorRegistration::claim("dev", AccountId(account), url);
    let proof = STANDARD.encode(key(coordinator).sign(claim.as_bytes()));
    json!({ "url": url, "proof": proof }).to_string()
}

#[tokio::test]
async fn a_coordinator_is_registered_trusted_and_withdrawn() {
    let ledger = Ledger::start().await;
    let (owner, runs) = (ledger.account(1).await, ledger.account(2).await);
    let farm = ledger.farm(&owner, "home").await;
    let at = format!("/v2/coordinators/{}", id(7));
    let trust = format!("/v2/farms/{farm}/coordinators/{}", id(7));
    let put = async |path: &str, who: &_, body: String| -> Answer {
        ledger.signed(Method::PUT, path, who, body).await
    };
    let unknown = put(&trust, &owner.key, String::new()).await;
    assert_eq!(code(&unknown), (404, "not_found"), "nobody has registered it");
    let url = "http://coord.example:8800";
    let stolen = put(&at, &owner.key, registration(7, runs.id, url)).await;
    assert_eq!(code(&stolen), (401, "bad_signature"), "its key speaks for account 2");
    let elsewhere = registration(7, runs.id, url).replace("coord.example", "evil.example");
    assert_eq!(code(&put(&at, &runs.key, elsewhere).await), (401, "bad_signature"));
    let odd = put(&at, &runs.key, registration(7, runs.id, "ftp://x")).await;
    assert_eq!(code(&odd), (400, "bad_request"));
    let made = ok(put(&at, &runs.key, registration(7, runs.id, url)).await);
    assert_eq!(made, json!({ "key": id(7), "account": 2, "url": url, "withdrawn": false }));
    assert_eq!(ok(ledger.get("/v2/coordinators").await), json!([made]));
    let taken = put(&at, &owner.key, registration(7, owner.id, url)).await;
    assert_eq!(code(&taken), (403, "unauthorised"));

    assert_eq!(code(&put(&trust, &runs.key, String::new()).await), (403, "unauthorised"));
    let named = ok(put(&trust, &owner.key, String::new()).await);
    assert_eq!(named["coordinators"], json!([id(7)]));
    let not_its = ledger.signed(Method::DELETE, &at, &owner.key, "").await;
    assert_eq!(code(&not_its), (403, "unauthorised"));
    ok(ledger.signed(Method::DELETE, &at, &runs.key, "").await);
    let after: Value = ok(ledger.get(&format!("/v2/farms/{farm}")).await);
    assert_eq!(after["coordinators"], json!([]), "nobody follows on after it was withdrawn");
    let back = put(&at, &runs.key, registration(7, runs.id, url)).await;
    assert_eq!(code(&back), (409, "conflict"));
}
