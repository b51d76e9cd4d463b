use http::Method;
use serde_json::{Value, json};

use crate::harness::{Ledger, error, stellar};

fn names(farms: &Value) -> Vec<&str> {
    farms.as_array().unwrap().iter().map(|f| f["farm_name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_farm_is_made_and_found() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let body = json!({ "farm_name": "Alpha1", "twin_id": 1, "stellar_address": stellar(),
        "dedicated": true, "farm_id": 77, "created_at": "2000-01-01T00:00:00Z" });
    let made = ledger.send(Method::POST, "/v1/farms", Some(&owner), &body).await;
    assert_eq!(made, (201, json!({ "farm_id": 1 })), "a client does not choose its id");
    let (status, farm) = ledger.get("/v1/farms/1").await;
    assert_eq!(status, 200);
    assert_eq!((&farm["farm_name"], &farm["twin_id"]), (&json!("Alpha1"), &json!(1)));
    assert_eq!((&farm["stellar_address"], &farm["dedicated"]), (&json!(stellar()), &json!(true)));
    assert_ne!(farm["created_at"], "2000-01-01T00:00:00Z");
    assert_eq!(ledger.get("/api/v1/farms/1").await.1, farm);
    assert_eq!(error(&ledger.get("/v1/farms/2").await), (404, "could not find any records"));
    let text = "Invalid farm_id: strconv.ParseUint: parsing \"x\": invalid syntax";
    assert_eq!(error(&ledger.get("/v1/farms/x").await), (400, text));
}

#[tokio::test]
async fn lists_are_filtered_ordered_and_paged() {
    let ledger = Ledger::start().await;
    let (a, b) = (ledger.account(1).await, ledger.account(2).await);
    for name in ["Zebra", "alpha", "ALPHAbet", "beta"] {
        ledger.farm(if name == "beta" { &b } else { &a }, name).await;
    }
    for (query, found) in [
        ("", vec!["Zebra", "alpha", "ALPHAbet", "beta"]),
        ("?farm_name=alpha", vec!["alpha", "ALPHAbet"]),
        ("?farm_name=ALPHA", vec!["alpha", "ALPHAbet"]),
        ("?farm_name=%25", vec![]),
        ("?farm_name=_", vec![]),
        ("?farm_id=3", vec!["ALPHAbet"]),
        ("?twin_id=2", vec!["beta"]),
        ("?twin_id=1&farm_name=z", vec!["Zebra"]),
        ("?size=2", vec!["Zebra", "alpha"]),
        ("?size=2&page=2", vec!["ALPHAbet", "beta"]),
        ("?size=2&page=0", vec!["Zebra", "alpha"]),
        ("?size=0", vec![]),
        ("?page=9", vec![]),
        ("?page=18446744073709551615&size=18446744073709551615", vec![]),
        ("?dedicated=false", vec!["Zebra", "alpha", "ALPHAbet", "beta"]),
        ("?dedicated=true", vec![]),
    ] {
        let (status, farms) = ledger.get(&format!("/v1/farms{query}")).await;
        assert_eq!((status, names(&farms)), (200, found), "{query}");
    }
    let answer = ledger.get("/v1/farms?farm_id=x").await;
    let text = "failed to bind query params to *db.FarmFilter: strconv.ParseUint: parsing \"x\": invalid syntax";
    assert_eq!(error(&answer), (400, text));
}

#[tokio::test]
async fn what_is_refused() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    ledger.account(2).await;
    ledger.farm(&owner, "taken").await;
    let post =
        async |body: Value| ledger.send(Method::POST, "/v1/farms", Some(&owner), &body).await;
    for (name, address) in [
        ("", stellar()),
        ("a-b", stellar()),
        ("a b", stellar()),
        ("é", stellar()),
        (&"a".repeat(41)[..], stellar()),
        ("ok", String::new()),
        ("ok", "GABC".into()),
        ("ok", stellar().to_lowercase()),
        ("ok", stellar().replacen('G', "X", 1)),
    ] {
        let answer =
            post(json!({ "farm_name": name, "twin_id": 1, "stellar_address": address })).await;
        assert!(
            error(&answer).1.starts_with("failed to parse farm info: ") && answer.0 == 400,
            "{name}"
        );
    }
    assert_eq!(post(json!({ "twin_id": 1, "stellar_address": stellar() })).await.0, 400);
    let foreign =
        post(json!({ "farm_name": "ok", "twin_id": 2, "stellar_address": stellar() })).await;
    assert_eq!(error(&foreign), (401, "not authorized"));
    let taken =
        post(json!({ "farm_name": "taken", "twin_id": 1, "stellar_address": stellar() })).await;
    assert_eq!(error(&taken), (409, "record already exists"));
    assert_eq!(names(&ledger.get("/v1/farms").await.1), ["taken"]);
    // Ours: a farm that is paid nowhere.
    assert_eq!(
        post(json!({ "farm_name": "free", "twin_id": 1 })).await,
        (201, json!({ "farm_id": 2 }))
    );
}

#[tokio::test]
async fn only_its_owner_changes_a_farm_and_only_what_is_given() {
    let ledger = Ledger::start().await;
    let (owner, other) = (ledger.account(1).await, ledger.account(2).await);
    ledger.farm(&owner, "one").await;
    ledger.farm(&other, "two").await;
    let patch = async |path: &str, who, body: Value| {
        ledger.send(Method::PATCH, path, Some(who), &body).await
    };
    let done = patch("/v1/farms/1", &owner, json!({ "farm_name": "uno" })).await;
    assert_eq!(done, (200, json!({ "message": "Farm was updated successfully" })));
    let (_, farm) = ledger.get("/v1/farms/1").await;
    assert_eq!((&farm["farm_name"], &farm["stellar_address"]), (&json!("uno"), &json!(stellar())));
    let address = stellar().replace('2', "3");
    patch("/v1/farms/1", &owner, json!({ "stellar_address": address, "farm_name": "" })).await;
    let (_, farm) = ledger.get("/v1/farms/1").await;
    assert_eq!((&farm["farm_name"], &farm["stellar_address"]), (&json!("uno"), &json!(address)));
    assert_eq!(patch("/v1/farms/1", &owner, json!({})).await.0, 200);

    let answer = patch("/v1/farms/1", &owner, json!({ "farm_name": "two" })).await;
    assert_eq!(error(&answer), (409, "record already exists"));
    assert_eq!(patch("/v1/farms/1", &owner, json!({ "farm_name": "a-b" })).await.0, 400);
    assert_eq!(patch("/v1/farms/1", &owner, json!({ "stellar_address": "x" })).await.0, 400);
    let answer = patch("/v1/farms/1", &other, json!({ "farm_name": "mine" })).await;
    assert_eq!(error(&answer), (401, "not authorized"));
    assert_eq!(error(&patch("/v1/farms/9", &owner, json!({})).await), (404, "Farm not found"));
    assert_eq!(patch("/v1/farms/x", &owner, json!({})).await.0, 400);
}
