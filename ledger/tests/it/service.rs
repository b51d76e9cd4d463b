use rhizome_ledger::{DatabaseUrl, LedgerConfig};
use rhizome_model::Code;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{Ledger, error};

#[tokio::test]
async fn it_has_what_every_service_has() {
    let ledger = Ledger::start().await;
    assert_eq!(ledger.get("/healthz").await, (200, json!({ "status": "ok" })));
    let (status, api) = ledger.get("/openapi.json").await;
    assert_eq!(status, 200);
    let described = |path: &str| assert!(api["paths"][path].is_object(), "{path} is missing");
    for path in [
        "/v1/accounts",
        "/v1/accounts/{twin_id}",
        "/v1/farms",
        "/v1/farms/{farm_id}",
        "/v1/nodes",
        "/v1/nodes/{node_id}",
        "/v1/nodes/{node_id}/uptime",
        "/v2/ledger",
        "/v2/statements",
        "/v2/accounts/{id}/keys",
        "/v2/nodes/{id}/usage",
        "/v2/farms/{id}/usage",
    ] {
        described(path);
    }
    let metrics = reqwest::get(format!("{}/metrics", ledger.base())).await.unwrap();
    assert_eq!(metrics.status(), 200);
    let answer = ledger.get("/v1/nothing").await;
    assert_eq!((error(&answer).0, &answer.1["code"]), (404, &json!("no_such_route")));
}

#[tokio::test]
async fn it_does_not_open_what_is_no_database_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let listener = rhizome_service::http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let database = DatabaseUrl::sqlite(dir.path().join("file/ledger.sqlite"));
    let config = LedgerConfig {
        database,
        network: "dev".into(),
        admin: rhizome_ledger::ADMIN,
        signing_key: dir.path().join("ledger.key"),
        statement_lifetime: rhizome_ledger::STATEMENT_LIFETIME,
    };
    let failure =
        rhizome_ledger::run(config, listener, CancellationToken::new()).await.unwrap_err();
    assert_eq!(failure.code, Code::StateNotWritable);
}
