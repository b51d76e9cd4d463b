//! `check`: everything that is wrong, without a node.

use std::collections::BTreeMap;

use rhizome_engine::check;
use rhizome_model::Code;
use serde_json::json;

use crate::support::sandboxes;

async fn findings(source: &str) -> Vec<(Code, String)> {
    let sandboxes = sandboxes();
    let found = check(&sandboxes, "x.rhai", source, BTreeMap::new()).await;
    sandboxes.close().await;
    found.into_iter().map(|f| (f.code, f.message)).collect()
}

#[tokio::test]
async fn our_own_scripts_are_good_with_and_without_parameters() {
    let sandboxes = sandboxes();
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts");
    let mut seen = 0;
    for entry in std::fs::read_dir(scripts).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "rhai") {
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let files = ["image", "kernel", "initramfs"]
            .map(|name| (name.to_owned(), json!(format!("file:///{name}"))));
        for params in [BTreeMap::new(), files.into()] {
            let found = check(&sandboxes, "x.rhai", &source, params).await;
            assert!(found.is_empty(), "{}: {found:?}", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 4, "{seen}");
    sandboxes.close().await;
}

#[tokio::test]
async fn everything_is_found_at_once() {
    let source = r#"
        let data = volum("data", #{ size: "1GiB" });
        if params.extra == 1 {
            machine("web", #{ imgae: "file:///x", mounts: [#{ volume: "d" }] });
            machine("UP", #{ image: "file:///x" });
        }
        log(`${missing} ${other}`);
        volume("small", #{ size: "1KiB" });
    "#;
    let found = findings(source).await;
    insta::assert_snapshot!(
        found.iter().map(|(c, m)| format!("{c} {m}")).collect::<Vec<_>>().join("\n")
    );
}

#[tokio::test]
async fn values_are_checked_by_a_plan() {
    let found = findings("let size = \"1\" + \"KiB\";\nvolume(\"v\", #{ size: size });").await;
    let [(Code::InvalidSpec, message)] = &found[..] else { panic!("{found:?}") };
    assert!(message.starts_with("x.rhai:2:16: volume: size: at least 1"), "{message}");
    // The plan stops where it cannot know, and what comes before was still checked.
    let waits = "let m = machine(\"m\", #{ image: \"file:///x\" }); m.wait(); volume(\"v\", #{ size: 1 - 1 });";
    assert_eq!(findings(waits).await, []);
}

#[tokio::test]
async fn a_syntax_error_is_one_finding() {
    let found = findings("let = 5;").await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, Code::ScriptSyntaxError);
}

#[tokio::test]
async fn parameters_that_are_not_given() {
    // Needed: not known, so nothing after it is judged. Optional: absent.
    assert_eq!(findings("volume(\"v\", #{ size: params.size });").await, []);
    assert_eq!(findings("volume(\"v\", #{ size: params.size ?? \"1GiB\" });").await, []);
    let found = findings("volume(\"v\", #{ size: params.size ?? \"1KiB\" });").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(findings("if params.x != () { fail(\"x\"); }").await, []);
}
