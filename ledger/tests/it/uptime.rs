use http::Method;
use serde_json::{Value, json};

use crate::harness::{Caller, Ledger, error, now};

const BOOT: &str = "00000001-0000-4000-8000-000000000000";
const NEXT_BOOT: &str = "00000002-0000-4000-8000-000000000000";
const PATH: &str = "/v2/nodes/1/uptime";

async fn with_node() -> (Ledger, Caller) {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    ledger.farm(&owner, "farm").await;
    ledger.node(&owner, 1).await;
    (ledger, owner)
}

fn report(boot: &str, sequence: u64, uptime: i64, ago: i64) -> Value {
    json!({ "boot_id": boot, "sequence": sequence, "uptime_s": uptime, "at": now() - ago })
}

async fn send(ledger: &Ledger, who: &Caller, reports: &[Value]) -> (u16, Value) {
    let body = json!({ "reports": reports }).to_string();
    ledger.signed(Method::POST, PATH, &who.key, body).await
}

#[tokio::test]
async fn reports_that_come_late_and_twice_count_once() {
    let (ledger, owner) = with_node().await;
    let batch = [
        report(BOOT, 1, 100, 9000),
        report(BOOT, 2, 2500, 6600),
        report(BOOT, 3, 4900, 4200),
        report(NEXT_BOOT, 1, 600, 600),
        report(NEXT_BOOT, 2, 1200, 0),
    ];
    let (status, reply) = send(&ledger, &owner, &batch).await;
    assert_eq!((status, &reply["stored"], &reply["known"]), (200, &json!(5), &json!(0)), "{reply}");
    assert_eq!(reply["highest"], 2);
    let (_, reply) = send(&ledger, &owner, &batch).await;
    assert_eq!((&reply["stored"], &reply["known"]), (&json!(0), &json!(5)), "{reply}");
    let (_, node) = ledger.get("/v1/nodes/1").await;
    assert_eq!(node["online"], true);

    // The node was registered a moment ago; before that no window reaches.
    let (status, seen) =
        ledger.get(&format!("/v2/nodes/1/availability?from={}", now() - 9100)).await;
    assert_eq!(status, 200, "{seen}");
    assert!(seen["until"].as_i64().unwrap() - seen["from"].as_i64().unwrap() < 60, "{seen}");
    assert_eq!(seen["events"].as_array().unwrap().len(), 0, "a restart before the window");
}

#[tokio::test]
async fn what_is_odd_is_told() {
    let (ledger, owner) = with_node().await;
    let (_, reply) = send(&ledger, &owner, &[report(BOOT, 1, 100, -3600)]).await;
    assert_eq!((&reply["stored"], &reply["refused"][0]["sequence"]), (&json!(0), &json!(1)));
    assert!(reply["refused"][0]["reason"].as_str().unwrap().contains("ahead"), "{reply}");
    send(&ledger, &owner, &[report(BOOT, 2, 10, 0)]).await;
    send(&ledger, &owner, &[report(BOOT, 3, 100_000, 0)]).await;
    let (_, seen) = ledger.get("/v2/nodes/1/availability").await;
    let kinds = seen["events"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap());
    let mut kinds: Vec<_> = kinds.collect();
    // They are told by time, and a second may end between the two.
    kinds.sort_unstable();
    assert_eq!(kinds, ["lie", "skew"], "{seen}");
    let (_, all) = ledger.get("/v2/availability").await;
    assert_eq!(all[0]["node_id"], 1, "{all}");
}

#[tokio::test]
async fn what_is_refused() {
    let (ledger, owner) = with_node().await;
    let other = ledger.account(2).await;
    let one = [report(BOOT, 1, 10, 0)];
    let answer = send(&ledger, &other, &one).await;
    assert_eq!((answer.0, &answer.1["code"]), (403, &json!("unauthorised")));
    let stranger = Caller { key: rhizome_identity::SigningKey::from_seed([77; 32]), id: 0 };
    assert_eq!(send(&ledger, &stranger, &one).await.1["code"], "unknown_account");
    let body = json!({ "reports": one }).to_string();
    let unsigned = ledger.call(Method::POST, PATH, None, Some(body.clone())).await;
    assert_eq!((error(&unsigned).0, &unsigned.1["code"]), (401, &json!("unauthenticated")));
    let elsewhere = ledger.signed(Method::POST, "/v2/nodes/9/uptime", &owner.key, body).await;
    assert_eq!(error(&elsewhere).0, 404);
    let many = vec![one[0].clone(); 1001];
    for wrong in [&many[..], &[], &[json!({})], &[report("x", 1, 1, 0)]] {
        assert_eq!(send(&ledger, &owner, wrong).await.0, 400);
    }
    assert_eq!(ledger.get("/v1/nodes/1").await.1["last_seen"], json!(null), "a refusal counted");
}

#[tokio::test]
async fn windows_that_make_no_sense() {
    let (ledger, _) = with_node().await;
    for query in ["?from=x", "?from=5&until=4", "?until=-1", "?from=99999999999"] {
        let path = format!("/v2/nodes/1/availability{query}");
        assert_eq!(error(&ledger.get(&path).await).0, 400, "{query}");
    }
    assert_eq!(error(&ledger.get("/v2/nodes/9/availability").await).0, 404);
}
