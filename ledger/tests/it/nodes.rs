use http::Method;
use serde_json::{Value, json};

use crate::harness::{Caller, Ledger, base64_of, error, new_node, now};

fn ids(nodes: &Value) -> Vec<u64> {
    nodes.as_array().unwrap().iter().map(|n| n["node_id"].as_u64().unwrap()).collect()
}

async fn with_farm() -> (Ledger, Caller) {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    ledger.farm(&owner, "farm").await;
    (ledger, owner)
}

#[tokio::test]
async fn a_node_is_registered_and_found() {
    let (ledger, owner) = with_farm().await;
    let mut body = new_node(owner.id, 1);
    body["supervisor_url"] = json!("http://[5d3::1]:8100");
    let made = ledger.send(Method::POST, "/v1/nodes", Some(&owner), &body).await;
    assert_eq!(made, (201, json!({ "node_id": 1 })));
    let (status, node) = ledger.get("/v1/nodes/1").await;
    assert_eq!(status, 200);
    for field in [
        "twin_id",
        "farm_id",
        "location",
        "resources",
        "secure_boot",
        "virtualized",
        "serial_number",
        "supervisor_url",
    ] {
        assert_eq!(node[field], body[field], "{field}");
    }
    assert_eq!(node["Interfaces"], body["interfaces"]);
    assert_eq!(node["public_key"], base64_of(&owner.key));
    assert_eq!((&node["online"], &node["approved"]), (&json!(false), &json!(false)));
    assert_eq!(node["last_seen"], json!(null));
    assert_eq!(ledger.get("/api/v1/nodes/1").await.1, node);
    assert_eq!(error(&ledger.get("/v1/nodes/2").await), (404, "could not find any records"));
    assert_eq!(error(&ledger.get("/v1/nodes/x").await), (400, "Invalid node id"));
}

#[tokio::test]
async fn the_forms_that_v4_clients_send() {
    let (ledger, owner) = with_farm().await;
    let mut body = new_node(owner.id, 1);
    body["interfaces"][0]["ips"] = json!("10.0.0.2/fd00::2");
    body.as_object_mut().unwrap().remove("resources");
    assert_eq!(ledger.send(Method::POST, "/v1/nodes", Some(&owner), &body).await.0, 201);
    let (_, node) = ledger.get("/v1/nodes/1").await;
    assert_eq!(node["Interfaces"][0]["ips"], json!(["10.0.0.2", "fd00::2"]));
    // v4's UpdateNode reads a node and sends it back whole.
    let (status, _) = ledger.send(Method::PATCH, "/v1/nodes/1", Some(&owner), &node).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn what_is_refused() {
    let (ledger, owner) = with_farm().await;
    ledger.account(2).await;
    let post =
        async |body: &Value| ledger.send(Method::POST, "/v1/nodes", Some(&owner), body).await;
    let with = |field: &str, value: Value| {
        let mut body = new_node(1, 1);
        body[field] = value;
        body
    };
    for (field, value) in [
        ("twin_id", json!(0)),
        ("farm_id", json!(0)),
        ("farm_id", json!(-1)),
        ("interfaces", json!(null)),
        ("interfaces", json!([])),
        ("interfaces", json!(vec![json!({}); 65])),
        ("serial_number", json!("")),
        ("serial_number", json!("s".repeat(300))),
        ("supervisor_url", json!("ftp://x")),
        ("resources", json!({ "cru": u64::MAX })),
        ("resources", json!({ "cru": "many" })),
    ] {
        let answer = post(&with(field, value.clone())).await;
        assert_eq!(error(&answer).0, 400, "{field} {value}");
    }
    assert_eq!(error(&post(&with("twin_id", json!(2))).await), (401, "not authorized"));
    assert_eq!(error(&post(&with("farm_id", json!(9))).await), (404, "farm not found"));
    assert_eq!(ledger.get("/v1/nodes").await, (200, json!([])));
    assert_eq!(post(&new_node(1, 1)).await.0, 201);
    assert_eq!(error(&post(&new_node(1, 1)).await), (409, "record already exists"));
    assert_eq!(ids(&ledger.get("/v1/nodes").await.1), [1]);
}

#[tokio::test]
async fn only_the_node_changes_itself() {
    let (ledger, owner) = with_farm().await;
    let other = ledger.account(2).await;
    ledger.farm(&other, "other").await;
    let mut body = new_node(1, 1);
    body["supervisor_url"] = json!("http://a");
    ledger.send(Method::POST, "/v1/nodes", Some(&owner), &body).await;
    let patch = async |path: &str, who, body: &Value| {
        ledger.send(Method::PATCH, path, Some(who), body).await
    };
    let mut change = new_node(1, 2);
    change["secure_boot"] = json!(false);
    change["virtualized"] = json!(false);
    change["serial_number"] = json!("S2");
    change.as_object_mut().unwrap().remove("twin_id");
    let done = patch("/v1/nodes/1", &owner, &change).await;
    assert_eq!(done, (200, json!({ "message": "node updated successfully" })));
    let (_, node) = ledger.get("/v1/nodes/1").await;
    assert_eq!((&node["secure_boot"], &node["virtualized"]), (&json!(false), &json!(false)));
    assert_eq!((&node["serial_number"], &node["farm_id"]), (&json!("S2"), &json!(2)));
    assert_eq!(
        node["supervisor_url"], "http://a",
        "a client that does not know it must not lose it"
    );

    assert_eq!(error(&patch("/v1/nodes/x", &owner, &change).await), (400, "invalid node ID"));
    assert_eq!(error(&patch("/v1/nodes/9", &owner, &change).await), (404, "node not found"));
    assert_eq!(error(&patch("/v1/nodes/1", &other, &json!({})).await), (401, "not authorized"));
    let answer = patch("/v1/nodes/1", &owner, &json!({})).await;
    assert!(error(&answer).1.starts_with("invalid request body") && answer.0 == 400);
    assert_eq!(patch("/v1/nodes/1", &owner, &new_node(1, 9)).await.0, 404);
}

#[tokio::test]
async fn uptime_makes_a_node_online() {
    let (ledger, owner) = with_farm().await;
    let other = ledger.account(2).await;
    ledger.node(&owner, 1).await;
    let report = async |path: &str, who, uptime: Value, ahead: i64| {
        let body = json!({ "uptime": uptime, "timestamp": now() + ahead });
        ledger.send(Method::POST, path, Some(who), &body).await
    };
    let path = "/v1/nodes/1/uptime";
    let done = report(path, &owner, json!(100), 0).await;
    assert_eq!(done, (201, json!({ "message": "uptime reported successfully" })));
    let (_, node) = ledger.get("/v1/nodes/1").await;
    assert_eq!(node["online"], true);
    let seen = node["last_seen"].clone();
    assert!(seen.as_str().unwrap().ends_with('Z'));
    // An older report that arrives late does not move it back.
    assert_eq!(report(path, &owner, json!(50), -50).await.0, 201);
    assert_eq!(ledger.get("/v1/nodes/1").await.1["last_seen"], seen);

    for uptime in [json!(0), json!(-1), json!("x"), json!(u64::MAX), json!(null)] {
        assert_eq!(report(path, &owner, uptime.clone(), 0).await.0, 400, "{uptime}");
    }
    for ahead in [-63, 65] {
        let answer = report(path, &owner, json!(1), ahead).await;
        let text = "invalid timestamp hint: must be within ±60 seconds of the current time (";
        assert!(error(&answer).1.starts_with(text) && answer.0 == 400, "{}", answer.1);
    }
    // What v4's client tries second.
    let rfc3339 = json!({ "Uptime": 1, "Timestamp": "2026-01-01T00:00:00Z" });
    assert_eq!(ledger.send(Method::POST, path, Some(&owner), &rfc3339).await.0, 400);
    assert_eq!(error(&report(path, &other, json!(1), 0).await), (401, "not authorized"));
    let answer = report("/v1/nodes/9/uptime", &owner, json!(1), 0).await;
    assert_eq!(error(&answer), (404, "node not found"));
    let answer = report("/v1/nodes/x/uptime", &owner, json!(1), 0).await;
    assert_eq!(error(&answer), (400, "Invalid node id"));
}

#[tokio::test]
async fn lists_are_filtered_ordered_and_paged() {
    let (ledger, first) = with_farm().await;
    let (second, third) = (ledger.account(2).await, ledger.account(3).await);
    ledger.farm(&second, "other").await;
    ledger.node(&first, 1).await;
    ledger.node(&second, 2).await;
    ledger.node(&third, 1).await;
    let report = json!({ "uptime": 1, "timestamp": now() - 55 });
    ledger.send(Method::POST, "/v1/nodes/2/uptime", Some(&second), &report).await;
    for (query, found) in [
        ("", vec![1, 2, 3]),
        ("?node_id=2", vec![2]),
        ("?farm_id=1", vec![1, 3]),
        ("?twin_id=3", vec![3]),
        ("?twin_id=3&farm_id=2", vec![]),
        ("?online=true", vec![2]),
        ("?online=false", vec![1, 3]),
        ("?online=1&farm_id=1", vec![]),
        ("?last_seen=5", vec![2]),
        ("?last_seen=0", vec![]),
        ("?online=false&last_seen=0", vec![1, 2, 3]),
        ("?healthy=true&status=up", vec![1, 2, 3]),
        ("?size=2", vec![1, 2]),
        ("?size=2&page=2", vec![3]),
        ("?size=100000", vec![1, 2, 3]),
    ] {
        let (status, nodes) = ledger.get(&format!("/v1/nodes{query}")).await;
        assert_eq!((status, ids(&nodes)), (200, found), "{query}");
    }
    for query in ["?node_id=x", "?online=maybe", "?healthy=x", "?page=-1", "?last_seen=x"] {
        let answer = ledger.get(&format!("/v1/nodes{query}")).await;
        let text = "failed to bind query params to *db.NodeFilter: strconv.";
        assert!(error(&answer).1.starts_with(text) && answer.0 == 400, "{query}: {}", answer.1);
    }
}
