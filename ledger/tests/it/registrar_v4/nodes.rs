//! Nodes and their uptime.

use http::Method;
use rhizome_identity::SigningKey;
use serde_json::{Value, json};

use super::client::{Registrar, TIME};
use super::done;
use crate::harness::{Caller, base64_of, new_node, now};

/// `new_node` sends what the client sends; this is what comes back.
fn shown(id: u64, who: &Caller, farm: u64) -> Value {
    let sent = new_node(who.id, farm);
    json!({
        "node_id": id, "farm_id": farm, "twin_id": who.id, "location": sent["location"],
        "resources": sent["resources"], "Interfaces": sent["interfaces"], "secure_boot": true,
        "virtualized": true, "serial_number": "S1",
        // v4 has the year 1 here; null is as good for its client, and true.
        "last_seen": null,
        "online": false, "created_at": TIME, "updated_at": TIME, "approved": false,
        // Ours.
        "public_key": base64_of(&who.key),
    })
}

pub async fn walk(registrar: &Registrar, owner: &Caller, other: &Caller) {
    let third = registrar.account(SigningKey::from_seed([3; 32]), 3).await;
    // What the client asks when it is made.
    registrar.get("/nodes?twin_id=1&page=1&size=50").await.is_page(0, &json!([]));
    are_refused(registrar, owner).await;
    registrar.get("/nodes").await.is_page(0, &json!([]));
    let post = async |who, body: &Value| registrar.send(Method::POST, "/nodes", who, body).await;
    post(owner, &new_node(1, 1)).await.is(201, &json!({ "node_id": 1 }));
    // What the client sends when it was refused: addresses as one text.
    let mut old = new_node(2, 2);
    old["interfaces"][0]["ips"] = json!("10.0.0.2/fd00::2");
    post(other, &old).await.is(201, &json!({ "node_id": 2 }));
    post(&third, &new_node(3, 1)).await.is(201, &json!({ "node_id": 3 }));
    // v4 documents it and answers 500.
    post(owner, &new_node(1, 1)).await.is_refusal(409, "record already exists");
    let all = json!([shown(1, owner, 1), shown(2, other, 2), shown(3, &third, 1)]);
    for node in all.as_array().unwrap() {
        registrar.get(&format!("/nodes/{}", node["node_id"])).await.is(200, node);
    }
    registrar.get("/nodes").await.is_page(3, &all);
    registrar.get("/nodes?twin_id=2&page=1&size=50").await.is_page(1, &json!([all[1]]));
    changes(registrar, owner, other).await;
    uptime(registrar, owner, other).await;
    lists(registrar).await;
}

async fn are_refused(registrar: &Registrar, owner: &Caller) {
    let with = |field: &str, value: Value| {
        let mut body = new_node(1, 1);
        body[field] = value;
        body
    };
    for (body, status, text) in [
        (json!([]), 400, "a JSON object is expected"),
        (json!({ "twin_id": 1 }), 400, "missing field…"),
        (with("twin_id", json!(0)), 400, "twin_id must be …"),
        (with("farm_id", json!(0)), 400, "farm_id must be …"),
        (with("serial_number", json!("")), 400, "serial_number must not be empty"),
        (with("interfaces", json!(null)), 400, "invalid type: null…"),
        // With v4 a 500, in these words.
        (with("interfaces", json!([])), 400, "interfaces must not be empty"),
        (with("twin_id", json!(2)), 401, "not authorized"),
        // With v4 a 500.
        (with("farm_id", json!(99)), 404, "farm not found"),
    ] {
        registrar.send(Method::POST, "/nodes", owner, &body).await.is_refusal(status, text);
    }
    let unbound = "failed to bind query params to *db.NodeFilter: strconv.Parse";
    for (path, status, text) in [
        ("/nodes/99", 404, "could not find any records".to_owned()),
        ("/nodes/x", 400, "Invalid node id".into()),
        ("/nodes/-1", 400, "Invalid node id".into()),
        ("/nodes?node_id=x", 400, format!("{unbound}Uint: parsing \"x\": invalid syntax")),
        ("/nodes?online=x", 400, format!("{unbound}Bool: parsing \"x\": invalid syntax")),
        ("/nodes?healthy=x", 400, format!("{unbound}Bool: parsing \"x\": invalid syntax")),
        ("/nodes?last_seen=x", 400, format!("{unbound}Uint: parsing \"x\": invalid syntax")),
        ("/nodes?size=x", 400, format!("{unbound}Uint: parsing \"x\": invalid syntax")),
    ] {
        registrar.get(path).await.is_refusal(status, &text);
    }
}

/// The client's UpdateNode reads a node, changes it and sends it back whole.
async fn changes(registrar: &Registrar, owner: &Caller, other: &Caller) {
    let patch =
        async |path: &str, who, body: &Value| registrar.send(Method::PATCH, path, who, body).await;
    let changed = done("node updated successfully");
    let mut node = registrar.get("/nodes/1").await.body().clone();
    // v4 cannot take a true back.
    (node["secure_boot"], node["virtualized"]) = (json!(false), json!(false));
    (node["farm_id"], node["serial_number"]) = (json!(2), json!("S2"));
    node["resources"]["cru"] = json!(8);
    node["updated_at"] = json!(TIME);
    let mut sent = node.clone();
    let fields = sent.as_object_mut().unwrap();
    let interfaces = fields.remove("Interfaces").unwrap();
    fields.extend([("interfaces".to_owned(), interfaces), ("uptime".to_owned(), json!(null))]);
    // Not the client's to say.
    (sent["online"], sent["Approved"], sent["twin_id"]) = (json!(true), json!(true), json!(2));
    patch("/nodes/1", owner, &sent).await.is(200, &changed);
    registrar.get("/nodes/1").await.is(200, &node);

    let mut nowhere = sent.clone();
    nowhere["farm_id"] = json!(99);
    let mut bare = sent.clone();
    bare["interfaces"] = json!([]);
    for (path, who, body, status, text) in [
        ("/nodes/x", owner, &sent, 400, "invalid node ID"),
        ("/nodes/99", owner, &sent, 404, "node not found"),
        // Whose it is comes before what is sent, as with v4.
        ("/nodes/1", other, &json!({}), 401, "not authorized"),
        // v4 does not say what is wrong with it.
        ("/nodes/1", owner, &json!({}), 400, "invalid request body: …"),
        ("/nodes/1", owner, &bare, 400, "invalid request body: interfaces must not be empty"),
        // With v4 a 500.
        ("/nodes/1", owner, &nowhere, 404, "farm not found"),
    ] {
        patch(path, who, body).await.is_refusal(status, text);
        registrar.get("/nodes/1").await.is(200, &node);
    }
}

async fn uptime(registrar: &Registrar, owner: &Caller, other: &Caller) {
    let post = async |path: &str, who, body| registrar.send(Method::POST, path, who, &body).await;
    let path = "/nodes/1/uptime";
    let report = |uptime: u64, ahead: i64| json!({ "uptime": uptime, "timestamp": now() + ahead });
    let far = "invalid timestamp hint: must be within ±60 seconds of the current time (…";
    for (path, who, body, status, text) in [
        ("/nodes/x/uptime", owner, report(1, 0), 400, "Invalid node id"),
        ("/nodes/99/uptime", owner, report(1, 0), 404, "node not found"),
        (path, other, report(1, 0), 401, "not authorized"),
        (path, other, report(1, 90), 401, "not authorized"),
        (path, owner, json!({}), 400, "missing field…"),
        (path, owner, report(0, 0), 400, "uptime must be …"),
        (path, owner, report(1, 90), 400, far),
        (path, owner, report(1, -90), 400, far),
        // What the client sends when it was refused.
        (
            path,
            owner,
            json!({ "Uptime": 1, "Timestamp": "2026-01-01T00:00:00.5+01:00" }),
            400,
            "missing field…",
        ),
    ] {
        post(path, who, body).await.is_refusal(status, text);
    }
    let mut node = registrar.get("/nodes/1").await.body().clone();
    assert_eq!((&node["last_seen"], &node["online"]), (&json!(null), &json!(false)), "{node}");
    let at = now() - 30;
    let taken = post(path, owner, json!({ "uptime": 3600, "timestamp": at })).await;
    taken.is(201, &done("uptime reported successfully"));
    let seen = jiff::Timestamp::from_second(at).unwrap().to_string();
    (node["last_seen"], node["online"]) = (json!(seen), json!(true));
    registrar.get("/nodes/1").await.is(200, &node);
    // With v4 a report that comes late sets it back.
    let late = post(path, owner, json!({ "uptime": 3580, "timestamp": at - 20 })).await;
    late.is(201, &done("uptime reported successfully"));
    registrar.get("/nodes/1").await.is(200, &node);
}

/// The first node was seen; it and the second are in farm 2.
async fn lists(registrar: &Registrar) {
    for (query, total, ids) in [
        ("page=1&size=50", 3, &[1, 2, 3][..]),
        ("node_id=2&page=1&size=50", 1, &[2]),
        ("node_id=99", 0, &[]),
        ("farm_id=2", 2, &[1, 2]),
        ("twin_id=3", 1, &[3]),
        ("twin_id=3&farm_id=2", 0, &[]),
        ("online=true", 1, &[1]),
        ("online=false", 2, &[2, 3]),
        ("online=false&farm_id=2", 1, &[2]),
        ("last_seen=40", 1, &[1]),
        ("last_seen=0", 0, &[]),
        // Some versions of the client always send the one, and v4 makes nothing of either.
        ("healthy=false&status=up", 3, &[1, 2, 3]),
        ("page=1&size=2", 3, &[1, 2]),
        ("page=2&size=2", 3, &[3]),
        ("page=0&size=2", 3, &[1, 2]),
        ("size=0", 3, &[]),
        ("size=4294967295", 3, &[1, 2, 3]),
    ] {
        registrar.get(&format!("/nodes?{query}")).await.has_ids("node_id", total, ids);
    }
}
