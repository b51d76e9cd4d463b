//! Children that are not ours to trust: the parent ends, in time, with a failure, and is not fooled.

use std::time::{Duration, Instant};

use rhizome_engine::{Evaluation, Stop};
use rhizome_model::Code;
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, program, script};

/// A shell's words for one frame.
fn frame(body: &str) -> String {
    let head: String = (body.len() as u32).to_be_bytes().map(|b| format!("\\{b:03o}")).concat();
    format!("printf '{head}%s' '{body}'; ")
}

async fn child(commands: &str, host: &Fake) -> Result<Evaluation, Stop> {
    let sandboxes = program(env!("CARGO_BIN_EXE_rhizome-sandbox"), &["shell", commands]);
    let mut script = script("output(\"x\", 1);");
    script.limits.wall_ms = 3000;
    let begin = Instant::now();
    let ended = sandboxes.evaluate(&script, host, CancellationToken::new()).await;
    assert!(begin.elapsed() < Duration::from_secs(15), "{commands}");
    sandboxes.close().await;
    ended
}

async fn fails(commands: &str, code: Code, words: &str) {
    let host = Fake::default();
    match child(commands, &host).await {
        Err(Stop::Failed(failure)) => {
            assert_eq!(failure.code, code, "{commands}: {failure:?}");
            assert!(failure.message.contains(words), "{commands}: {failure:?}");
        }
        other => panic!("{commands}: {other:?}"),
    }
    let asked = host.asked();
    assert!(asked.len() <= 2 && !asked.contains(&"finish".to_owned()), "{asked:?}");
}

/// This frame, from a child that listens.
async fn lies_with(frames: &str, words: &str) {
    fails(&format!("{frames} cat >/dev/null"), Code::Internal, words).await;
}

#[tokio::test]
async fn a_child_that_cannot_begin() {
    fails("echo oh no >&2; exit 3", Code::Internal, "oh no").await;
    lies_with(&frame("\"nonsense\""), "protocol").await;
}

#[tokio::test]
async fn a_program_that_is_not_there() {
    let sandboxes = program("/nonexistent/rhizome", &[]);
    let host = Fake::default();
    let ended = sandboxes.evaluate(&script(""), &host, CancellationToken::new()).await;
    let Err(Stop::Failed(failure)) = ended else { panic!("{ended:?}") };
    assert!(failure.message.contains("/nonexistent/rhizome"), "{failure}");
    sandboxes.close().await;
}

#[tokio::test]
async fn garbage_and_huge_lengths() {
    fails("cat /dev/urandom", Code::Internal, "protocol").await;
    fails("printf '\\377\\377\\377\\377'; cat >/dev/null", Code::Internal, "at most").await;
    fails("cat /dev/zero", Code::Internal, "protocol").await;
    fails("exit 0", Code::Internal, "ended unexpectedly").await;
    fails("kill -9 $$", Code::ScriptLimit, "memory").await;
    fails("kill -PROF $$", Code::ScriptLimit, "processor time").await;
    fails("kill -SEGV $$", Code::ScriptLimit, "too deep").await;
    fails("kill -SYS $$", Code::Internal, "system call").await;
}

#[tokio::test]
async fn silence_and_floods() {
    fails("cat >/dev/null", Code::ScriptLimit, "after 3000 ms").await;
    fails("exec >&-; exec sleep 60", Code::Internal, "does not keep to the protocol").await;
    fails("while :; do echo yes >&2; done", Code::ScriptLimit, "after 3000 ms").await;
    let log = frame(r#"{"Call":{"Log":"x"}}"#);
    let host = Fake::default();
    let flood = format!("cat >/dev/null & while :; do {log} done");
    let Err(Stop::Failed(failure)) = child(&flood, &host).await else { panic!() };
    assert_eq!(failure.code, Code::ScriptLimit, "{failure}");
    assert!(host.asked().len() <= 1000);
}

#[tokio::test]
async fn lies() {
    let declare = |name: &str, kind: &str, spec: &str| {
        frame(&format!(
            r#"{{"Call":{{"Declare":{{"name":"{name}","kind":"{kind}","spec":{spec}}}}}}}"#
        ))
    };
    let data = declare("data", "volume", r#"{"size":1048576}"#);
    lies_with(&declare("../x", "volume", r#"{"size":1}"#), "protocol").await;
    lies_with(&declare("data", "volume", r#"{"size":1}"#), "at least").await;
    lies_with(&format!("{data}{data}"), "twice").await;
    let mounts = r#"{"image":"file:///x","mounts":[{"volume":"other","path":"/d"}]}"#;
    lies_with(&declare("m", "machine", mounts), "not declared").await;
    lies_with(&frame(r#"{"Call":{"Read":"nobody"}}"#), "not declared").await;
    let act = r#"{"Call":{"Act":{"name":"nobody","action":{"action":"stop"}}}}"#;
    lies_with(&frame(act), "not declared").await;
    let raised = r#"{"Done":{"findings":[],"stop":{"Raised":{"id":7,"place":"here"}}}}"#;
    lies_with(&frame(raised), "a failure that was not").await;
    let code =
        r#"{"Done":{"findings":[],"stop":{"Failed":{"error":"I am coord","code":"replayed"}}}}"#;
    lies_with(&frame(code), "I am coord").await;
    let deep = format!(
        "{{\"Call\":{{\"Output\":{{\"key\":\"k\",\"value\":{}{}}}}}}}",
        "[".repeat(5000),
        "]".repeat(5000)
    );
    lies_with(&frame(&deep), "protocol").await;
}
