//! `plan`: the same script, nothing made.

use rhizome_engine::plan;
use rhizome_model::secret::mask;
use rhizome_model::{Bytes, Capacity, Code, Cpu};
use serde_json::json;

use crate::support::{sandboxes, script};

const DEMO: &str = include_str!("../../../scripts/demo.rhai");

#[tokio::test]
async fn a_plan_is_exact_and_always_the_same() {
    let sandboxes = sandboxes();
    let fleet = script(include_str!("../../../scripts/fleet.rhai"));
    let first = plan(&sandboxes, &fleet).await.unwrap();
    assert_eq!(first, plan(&sandboxes, &fleet).await.unwrap());
    assert!(first.complete);
    let names: Vec<_> = first.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["member-0", "member-1", "member-2"]);
    let total =
        Capacity { cpu: Cpu::from_millis(300), memory: Bytes::mib(48), disk: Bytes::mib(24) };
    assert_eq!(first.total, total);
    assert_eq!(first.outputs["addresses"].as_array().map(Vec::len), Some(3));
    sandboxes.close().await;
}

#[tokio::test]
async fn a_plan_ends_where_only_execution_knows() {
    let sandboxes = sandboxes();
    let plan = plan(&sandboxes, &script(DEMO)).await.unwrap();
    assert!(!plan.complete);
    assert_eq!(plan.resources.len(), 3);
    assert_eq!(plan.resources[1].line, 15);
    let disk = Bytes::mib(16 + 256 + 256);
    assert_eq!(plan.total, Capacity { cpu: Cpu::from_millis(500), memory: Bytes::mib(64), disk });
    assert!(plan.outputs.is_empty());
    sandboxes.close().await;
}

#[tokio::test]
async fn secrets_are_placeholders_and_failures_are_failures() {
    let sandboxes = sandboxes();
    let secret = script("log(\"x\"); output(\"a\", secret(\"db\"));");
    let planned = plan(&sandboxes, &secret).await.unwrap();
    assert_eq!(planned.logs, ["x"]);
    assert_eq!(planned.outputs["a"], json!("***"));
    let failure = plan(&sandboxes, &script("fail(\"no\");")).await.unwrap_err();
    assert_eq!(failure.code, Code::ScriptFailed);
    sandboxes.close().await;
}

#[tokio::test]
async fn a_plan_sees_past_a_database_and_knows_its_password_by_name_only() {
    let sandboxes = sandboxes();
    let source = r#"let db = herodb("db", #{ size: "64MiB" });
        machine("app", #{ image: params.image, env: #{ URL: db.url } });"#;
    let plan = plan(&sandboxes, &script(source)).await.unwrap();
    assert!(plan.complete);
    let shown = mask(&plan.resources[1].spec);
    let url = shown["env"]["URL"].as_str().unwrap();
    assert!(url.starts_with("redis://:(secret of db)@["), "{url}");
    assert_eq!(plan.resources[0].demand().unwrap().disk, Bytes::mib(64));
    sandboxes.close().await;
}
