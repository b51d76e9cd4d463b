//! Who may see what.

use http::{HeaderMap, Method};
use rhizome_identity::http_signature;
use rhizome_model::api::DeploymentView;
use rhizome_model::{Code, Phase};
use serde_json::Value;

use crate::world::{User, World};

const READS: [&str; 6] = [
    "/v1/deployments",
    "/v1/deployments/1/demo",
    "/v1/deployments/1/demo/events",
    "/v1/deployments/1/demo/resources/data/logs",
    "/v1/nodes",
    "/v1/nodes/1/queues",
];

#[tokio::test]
async fn reads_need_the_signature_of_an_account() {
    let world = World::new(1).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    let stranger = User::new(9).of(&world.coord.url());
    for path in READS {
        for client in [&user.plain, &stranger.client] {
            let failure = client.get::<Value>(path).await.unwrap_err();
            assert_eq!(failure.code, Code::Unauthenticated, "{path}");
        }
    }
    // The same signed request counts once.
    let headers = http_signature::signer(user.key.clone())(&Method::GET, "/v1/nodes", None, b"");
    let call =
        |headers: HeaderMap| user.plain.call(Method::GET, "/v1/nodes", Vec::new(), headers, None);
    call(headers.clone()).await.unwrap();
    assert_eq!(call(headers).await.unwrap_err().code, Code::Unauthenticated);
    // Open to all:
    for path in ["/healthz", "/openapi.json"] {
        user.plain.get::<Value>(path).await.unwrap();
    }
}

#[tokio::test]
async fn another_account_cannot_even_tell_that_it_exists() {
    let world = World::new(1).await;
    let (user, other) = (world.user(1), world.user(2));
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    other.deploy("demo", 7, &[1]).await;
    other.sees("demo", 7, Phase::Ready).await;
    for path in &READS[1..4] {
        let there = other.client.get::<Value>(path).await.unwrap_err();
        let nowhere = path.replace("demo", "none");
        let not_there = other.client.get::<Value>(&nowhere).await.unwrap_err();
        assert_eq!(there.code, Code::NotFound);
        assert_eq!(there.message.replace("demo", "none"), not_there.message);
    }
    let own: Vec<DeploymentView> = other.client.get("/v1/deployments").await.unwrap();
    assert_eq!(own.len(), 1);
    assert_eq!(own[0].deployment.to_string(), "2/demo");
    assert!(other.events("demo").await.iter().all(|e| e.deployment.account.0 == 2));
    let steals = user.sign_delete("demo", 1);
    let theirs = String::from_utf8(steals).unwrap();
    assert!(user.submit(theirs.into_bytes()).await.is_ok());
    other.sees("demo", 7, Phase::Ready).await;
}

#[tokio::test]
async fn the_description_of_the_api() {
    let world = World::new(0).await;
    let api: Value = world.user(1).plain.get("/openapi.json").await.unwrap();
    let mut lines = Vec::new();
    for (path, methods) in api["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let answers: Vec<_> =
                operation["responses"].as_object().unwrap().keys().cloned().collect();
            lines.push(format!("{method} {path} -> {}", answers.join(" ")));
        }
    }
    insta::assert_snapshot!("routes", lines.join("\n"));
    insta::assert_json_snapshot!("openapi", api, { ".info.version" => "[version]" });
}

#[tokio::test]
async fn its_metrics_count() {
    let world = World::new(1).await;
    let user = world.user(1);
    user.deploy("demo", 1, &[1]).await;
    user.sees("demo", 1, Phase::Ready).await;
    user.submit(b"{}".to_vec()).await.unwrap_err();
    let answer = user.plain.call(Method::GET, "/metrics", Vec::new(), HeaderMap::new(), None).await;
    let text = answer.unwrap().text().await.unwrap();
    for line in [
        "rhizome_coord_submissions_total{code=\"accepted\"}",
        "rhizome_coord_submissions_total{code=\"bad_envelope\"}",
        "rhizome_coord_mirror_lag_seconds",
        "rhizome_coord_tasks{phase=\"ready\"}",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}
