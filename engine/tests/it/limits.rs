//! Every limit, lowered so that it is met soon: the code, and the words that name the limit.

use std::time::{Duration, Instant};

use rhizome_engine::Script;
use rhizome_model::{Code, Limits};
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, failed, failure, sandboxes, script};

async fn says(source: &str, limit: impl FnOnce(&mut Limits), words: &str) {
    let mut script: Script = script(source);
    limit(&mut script.limits);
    let failure = failure(&script).await;
    assert_eq!(failure.code, Code::ScriptLimit, "{source}: {failure:?}");
    assert!(failure.message.contains(words), "{source}: {}", failure.message);
}

#[tokio::test]
async fn sizes() {
    says("let a = 1;", |l| l.source = 5, "at most 5 are taken").await;
    says("loop {}", |l| l.operations = 100, "more than 100 operations").await;
    says("fn f() { f() } f();", |l| l.call_depth = 5, "more than 5 deep").await;
    says("let s = \"abc\"; s += s; s += s;", |l| l.string = 10, "longer than 10 bytes").await;
    says("let a = []; for i in 0..9 { a.push(i); }", |l| l.array = 5, "more than 5 entries").await;
    says("let m = #{ a: 1, b: 2, c: 3 }; m.d = 4; m == m;", |l| l.map = 2, "").await;
}

#[tokio::test]
async fn resources_and_messages() {
    let many = "for i in 0..10000 { volume(`v-${i}`, #{ size: \"1MiB\" }); }";
    says(many, |l| l.resources = 7, "test.rhai:1:21: a script declares at most 7 resources").await;
    says(many, |_| {}, "at most 1000 resources").await;
    says("loop { log(\"x\"); }", |l| l.messages = 5, "at most 5 lines").await;
    says("loop { print(\"x\"); }", |l| l.messages = 5, "at most 5 lines").await;
    says("let i = 0; loop { output(`${i}`, 1); i += 1; }", |l| l.messages = 5, "at most 5").await;
    let large = "let a = []; for i in 0..4000 { a.push(\"0123456789\".sub_string(0)); } \
                 let b = []; let s = \"x\"; s.pad(60000, 'x'); for i in 0..9 { b.push([]); } \
                 output(\"a\", #{ a: s, b: s, c: s, d: s, e: s });";
    says(large, |l| l.string = 1 << 20, "larger than 256 KiB").await;
    let flood = "let s = \"\"; s.pad(65000, 'x'); for i in 0..900 { log(s); }";
    says(flood, |_| {}, "more than 4 MiB").await;
}

#[tokio::test]
async fn processor_time() {
    let begin = Instant::now();
    let endless = "let x = 0; loop { x += 1; }";
    let slow = |l: &mut Limits| {
        l.operations = u64::MAX;
        l.cpu_ms = 300;
    };
    says(endless, slow, "300 ms of processor time").await;
    // One native call that takes long by itself never comes to where it is asked to stop.
    let native = "let a = []; for i in 0..4000 { a.push(4000 - i); } \
                  loop { a.sort(|x, y| x - y); a.reverse(); a == a; }";
    says(native, slow, "300 ms of processor time").await;
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn memory() {
    // Closures keep what they capture, and no limit of Rhai counts that.
    let hoard = "let keep = []; let s = \"x\"; while s.len() < 32000 { s += s; } \
                 for i in 0..4000 { let t = s + i; keep.push(|| t); }";
    says(hoard, |l| l.memory = 48 << 20, "more than 48 MiB of memory").await;
}

#[tokio::test]
async fn wall_time() {
    let begin = Instant::now();
    let host = Fake { stuck: ["web"].into(), ..Fake::default() };
    let mut script = script("let w = machine(\"web\", #{ image: params.image }); w.pid;");
    script.limits.wall_ms = 700;
    let sandboxes = sandboxes();
    let ended = sandboxes.evaluate(&script, &host, CancellationToken::new()).await;
    let failure = failed(ended);
    assert_eq!(failure.code, Code::ScriptLimit);
    assert!(failure.message.contains("after 700 ms: it waits for `web` still"), "{failure}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    sandboxes.close().await;
}
