use http::Method;
use serde_json::{Value, json};

use super::{code, ok};
use crate::harness::{Caller, Ledger, new_node, now};

fn report(reasons: &[&str]) -> String {
    let part = |n: u64| json!({ "cpu": n, "memory": n << 30, "disk": n << 30 });
    let capacity = json!({ "total": part(4), "reserved": part(1), "free": part(3) });
    json!({ "capacity": capacity, "reasons": reasons }).to_string()
}

struct Farm {
    ledger: Ledger,
    owner: Caller,
    account: Caller,
    node: u64,
}

async fn farm() -> Farm {
    let ledger = Ledger::start().await;
    let (owner, account) = (ledger.account(1).await, ledger.account(2).await);
    let farm = ledger.farm(&owner, "home").await;
    let node = ledger.node(&account, farm).await;
    Farm { ledger, owner, account, node }
}

#[tokio::test]
async fn its_farms_owner_approves_of_a_node() {
    let Farm { ledger, owner, account, node } = farm().await;
    let own = ledger.node(&owner, 1).await;
    let ids = async |query: &str| -> Vec<u64> {
        let nodes = ok(ledger.get(&format!("/v2/nodes?{query}")).await);
        nodes.as_array().unwrap().iter().map(|n| n["id"].as_u64().unwrap()).collect()
    };
    assert_eq!(ids("approved=false").await, [node], "it is listed as such");
    assert_eq!(ids("approved=true").await, [own], "an owner's own node needs nobody's approval");
    let path = format!("/v2/nodes/{node}/approval");
    let approve = r#"{"approved":true}"#;
    let itself = ledger.signed(Method::PUT, &path, &account.key, approve).await;
    assert_eq!(code(&itself), (403, "unauthorised"));
    let seen = ok(ledger.signed(Method::PUT, &path, &owner.key, approve).await);
    assert_eq!(seen["approved"], true);
    assert_eq!(ids("farm=1&approved=true").await, [node, own]);
    let v1 = ok(ledger.get(&format!("/v1/nodes/{node}")).await);
    assert_eq!(v1["approved"], true);
    // It moves to a farm whose owner has not approved of it.
    let third = ledger.account(3).await;
    let other = ledger.farm(&third, "other").await;
    let moved = new_node(account.id, other);
    ok(ledger.send(Method::PATCH, &format!("/v1/nodes/{node}"), Some(&account), &moved).await);
    assert_eq!(ids("approved=false").await, [node]);
    let late = ledger.signed(Method::PUT, &path, &owner.key, approve).await;
    assert_eq!(code(&late), (403, "unauthorised"), "it is another's farm now");
}

#[tokio::test]
async fn it_says_what_is_free_and_how_it_is_apart_from_being_up() {
    let Farm { ledger, owner, account, node } = farm().await;
    let (at, path) = (format!("/v2/nodes/{node}"), format!("/v2/nodes/{node}/status"));
    let before = ok(ledger.get(&at).await);
    assert_eq!(
        (&before["health"], &before["capacity"]),
        (&json!({ "state": "unknown" }), &Value::Null)
    );
    let foreign = ledger.signed(Method::POST, &path, &owner.key, report(&[])).await;
    assert_eq!(code(&foreign), (403, "unauthorised"));
    let seen = ok(ledger.signed(Method::POST, &path, &account.key, report(&[])).await);
    assert_eq!(seen["health"], json!({ "state": "healthy" }));
    assert_eq!(seen["capacity"]["free"]["memory"], json!(3u64 << 30));
    assert_eq!(seen["online"], false, "that it is healthy does not make it up");
    // Of the same second, so not known to be newer.
    let again = ledger.signed(Method::POST, &path, &account.key, report(&["x"])).await;
    assert_eq!(code(&again), (409, "stale_version"));
    let later = now() + 1;
    let body = report(&["no runner of the queue machine"]);
    let headers = rhizome_identity::http_signature::sign(
        &account.key,
        &Method::POST,
        &path,
        None,
        body.as_bytes(),
        later,
    );
    let headers = headers.unwrap().into_iter().collect();
    let seen = ok(ledger.with_headers(Method::POST, &path, headers, body).await);
    let reasons = ["no runner of the queue machine"];
    assert_eq!(seen["health"], json!({ "state": "unhealthy", "reasons": reasons }));
    let silent = r#"{"reasons":["its supervisor does not answer"]}"#;
    let headers = rhizome_identity::http_signature::sign(
        &account.key,
        &Method::POST,
        &path,
        None,
        silent.as_bytes(),
        later + 1,
    );
    let headers = headers.unwrap().into_iter().collect();
    let seen = ok(ledger.with_headers(Method::POST, &path, headers, silent.into()).await);
    assert_eq!(seen["capacity"], Value::Null);
    let many = report(&vec!["x"; 17]);
    let refused = ledger.signed(Method::POST, &path, &account.key, many).await;
    assert_eq!(code(&refused), (400, "bad_request"));
}
