use http::Method;
use serde_json::{Value, json};

use crate::harness::{Ledger, error};

#[tokio::test]
async fn the_version_is_a_text_that_the_first_account_sets() {
    let ledger = Ledger::start().await;
    let (admin, other) = (ledger.account(1).await, ledger.account(2).await);
    let path = "/v1/zos/version";
    assert_eq!(error(&ledger.get(path).await), (404, "zos version not set"));
    let version = "eyJ2ZXJzaW9uIjoidjAuMS4yIiwic2FmZV90b191cGdyYWRlIjp0cnVlfQ==";
    let put = async |who, body: &Value| {
        let (status, text) = ledger.text(Method::PUT, path, who, body).await;
        (status, serde_json::from_str::<Value>(&text).unwrap_or(json!(text)))
    };
    let body = json!({ "version": version });
    assert_eq!(error(&put(&other, &body).await), (401, "not authorized"));
    for wrong in
        [json!({}), json!({ "version": "" }), json!({ "version": "no base64!" }), json!([])]
    {
        assert_eq!(put(&admin, &wrong).await.0, 400, "{wrong}");
    }
    assert_eq!(ledger.get(path).await.0, 404, "a refusal set it");
    // As v4 has it: no body.
    assert_eq!(put(&admin, &body).await, (200, json!("")));
    assert_eq!(error(&put(&admin, &body).await), (409, "version already set"));
    for path in [path, "/api/v1/zos/version"] {
        assert_eq!(ledger.get(path).await, (200, json!(version)));
    }
    assert_eq!(put(&admin, &json!({ "version": "e30=" })).await.0, 200);
    assert_eq!(ledger.get(path).await, (200, json!("e30=")));
}
