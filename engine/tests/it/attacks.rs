//! Every attack that gets through Rhai's own limits, and its relatives: a clean end in bounded
//! time, and a parent that goes on.

use std::time::{Duration, Instant};

use rhizome_engine::{Sandboxes, Stop};
use rhizome_model::Code;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, failure, outputs, run, sandboxes, script};

/// Far above what any attack takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

async fn refused(source: &str, code: Code) -> String {
    let begin = Instant::now();
    let failure = failure(&script(source)).await;
    assert_eq!(failure.code, code, "{source}: {failure:?}");
    assert!(begin.elapsed() < PATIENCE, "{source}: {:?}", begin.elapsed());
    failure.message
}

async fn still_works(sandboxes: &Sandboxes) {
    let host = Fake::default();
    let ended =
        sandboxes.evaluate(&script("output(\"ok\", 1);"), &host, CancellationToken::new()).await;
    assert_eq!(ended.unwrap().outputs["ok"], json!(1));
}

#[tokio::test]
async fn deep_nesting_is_printed_and_compared() {
    let nested = "let a = []; for i in 0..4000 { a = [a]; }";
    for end in ["a.to_string();", "print(a);", "debug(a);", "a == a;", "`${a}`;"] {
        let ended = run(&script(&format!("{nested} {end}")), &Fake::default()).await;
        // Printing it may be too large a message; it never ends the process.
        if let Err(Stop::Failed(failure)) = &ended {
            assert_eq!(failure.code, Code::ScriptLimit, "{end} {failure:?}");
            assert!(failure.detail.is_some(), "{end} {failure:?}");
        }
    }
    refused(&format!("{nested} output(\"a\", a);"), Code::ScriptLimit).await;
    refused("let a = []; for i in 0..100000 { a = [a]; }", Code::ScriptLimit).await;
    refused("let m = #{}; loop { m = #{ m: m }; }", Code::ScriptLimit).await;
}

#[tokio::test]
async fn replace_does_not_explode() {
    let message = refused(
        "let s = \"a\"; while s.len() < 32000 { s += s; } let t = s; s.replace(\"a\", t);",
        Code::ScriptLimit,
    )
    .await;
    assert!(message.contains("a text longer than 65536 bytes"), "{message}");
    for call in ["s.replace(\"\", s)", "s.replace('a', s)", "s.replace(\"\", 'é')"] {
        let grow = "let s = \"a\"; while s.len() < 32000 { s += s; }";
        refused(&format!("{grow} {call};"), Code::ScriptLimit).await;
    }
    let replaced = "let s = \"aXbX\"; s.replace(\"X\", \"--\"); s.replace('b', \"c\"); \
                    s.replace(\"a\", 'd'); output(\"s\", s);";
    assert_eq!(outputs(replaced).await, json!({ "s": "d--c--" }));
}

#[tokio::test]
async fn curry_is_not_there() {
    refused("let f = |x| x; for i in 0..26 { f = f.curry(f); }", Code::ScriptSyntaxError).await;
    refused("let f = |x| x; curry(f, f);", Code::ScriptSyntaxError).await;
    let begin = Instant::now();
    let through_pointer =
        "let f = |x| x; let c = Fn(\"curry\"); for i in 0..40 { f = c.call(f, f); }";
    assert!(run(&script(through_pointer), &Fake::default()).await.is_err());
    assert!(begin.elapsed() < PATIENCE);
    let captured =
        "let f = |x| 1; for i in 0..40 { let g = f; f = |x| g.call(x) + g.call(x); } f.call(1)";
    refused(captured, Code::ScriptLimit).await;
}

#[tokio::test]
async fn nothing_sleeps() {
    for call in ["sleep(5);", "sleep(5.5);", "timestamp();", "rand();"] {
        let message = refused(call, Code::ScriptInvalid).await;
        assert!(message.contains("there is no function"), "{message}");
    }
    let begin = Instant::now();
    refused("let s = Fn(\"sleep\"); s.call(20);", Code::ScriptError).await;
    refused("let s = Fn(\"sleep\"); s.call(20.5);", Code::ScriptError).await;
    assert!(begin.elapsed() < Duration::from_secs(15));
}

#[tokio::test]
async fn a_map_cannot_grow_without_end() {
    refused("let m = #{}; for i in 0..2000000 { m[`k${i}`] = i; }", Code::ScriptLimit).await;
    refused(
        "let m = #{}; let i = 0; loop { m[i.to_string()] = m.len(); i += 1; }",
        Code::ScriptLimit,
    )
    .await;
}

#[tokio::test]
async fn a_long_script_is_refused_before_it_is_compiled() {
    let begin = Instant::now();
    let long = "let a = 1;\n".repeat(120_000);
    let message = refused(&long, Code::ScriptLimit).await;
    assert!(message.contains("at most 65536 are taken"), "{message}");
    assert!(begin.elapsed() < Duration::from_secs(5));
    // What is just short enough is compiled within the limit of time.
    let many = "let a=1;".repeat(8190);
    let ended = run(&script(&many), &Fake::default()).await;
    assert!(ended.is_ok(), "{ended:?}");
    let many: String = (0..5000).map(|i| format!("let a{i}=1;")).collect();
    refused(&many, Code::ScriptLimit).await;
    assert!(begin.elapsed() < PATIENCE);
}

#[tokio::test]
async fn growing_an_array_is_bounded() {
    refused("let a = []; loop { a += 1; }", Code::ScriptLimit).await;
    refused("let a = []; loop { a.push(1); }", Code::ScriptLimit).await;
    refused("let a = [1]; loop { a.append(a); }", Code::ScriptLimit).await;
    refused("let b = blob(1000000000, 1);", Code::ScriptLimit).await;
    refused("let a = []; a.pad(1000000000, 1);", Code::ScriptLimit).await;
    refused("let s = \"\"; s.pad(1000000000, 'x');", Code::ScriptLimit).await;
    refused("let s = \"x\"; loop { s += s; }", Code::ScriptLimit).await;
}

#[tokio::test]
async fn recursion_and_endless_loops_are_named() {
    let message = refused("fn f(n) { f(n + 1) } f(0);", Code::ScriptLimit).await;
    assert!(message.contains("nested more than 32 deep"), "{message}");
    let message = refused("loop { }", Code::ScriptLimit).await;
    assert!(message.contains("more than 5000000 operations"), "{message}");
    refused("let x = 0; while true { x += 1; }", Code::ScriptLimit).await;
    refused("for i in 0..9223372036854775807 { }", Code::ScriptLimit).await;
    refused("let f = |f| f.call(f); f.call(f);", Code::ScriptLimit).await;
}

#[tokio::test]
async fn deep_syntax_is_refused() {
    for source in [
        format!("{}1{}", "(".repeat(5000), ")".repeat(5000)),
        format!("let a = {}1{};", "[".repeat(5000), "]".repeat(5000)),
        format!("let a = {}#{{}}{};", "#{a:".repeat(5000), "}".repeat(5000)),
        format!("let a = 1{};", "+1".repeat(20_000)),
        format!("let a = {}1;", "-".repeat(20_000)),
        format!("{}{}", "{".repeat(20_000), "}".repeat(20_000)),
        "if true {".repeat(5000),
        format!("let a = #{{}}; a{};", ".b".repeat(20_000)),
    ] {
        let begin = Instant::now();
        let failure = failure(&script(&source)).await;
        let expected = [Code::ScriptLimit, Code::ScriptSyntaxError, Code::ScriptError];
        assert!(expected.contains(&failure.code), "{:.40}: {failure:?}", source);
        assert!(begin.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn there_is_no_way_to_other_code() {
    for source in ["import \"x\" as x;", "export x;", "eval(\"1\");", "let a = \"b\"; a.eval();"] {
        refused(source, Code::ScriptSyntaxError).await;
    }
    refused("open_file(\"/etc/passwd\");", Code::ScriptInvalid).await;
    refused("fs::read(\"/etc/passwd\");", Code::ScriptInvalid).await;
    assert!(run(&script("Fn(\"eval\").call(\"loop {}\")"), &Fake::default()).await.is_err());
}

#[tokio::test]
async fn values_that_hold_themselves_end() {
    for source in [
        "let a = []; let f = || a.push(a); f.call(); print(a);",
        "let a = #{}; let f = || { a.me = a; }; f.call(); f.call(); `${a}`",
        "let a = [1]; let f = |x| { a.push(x); a == a }; f.call(a); a.for_each(f);",
    ] {
        let begin = Instant::now();
        let mut script = script(source);
        script.limits.wall_ms = 3000;
        if let Err(Stop::Failed(failure)) = run(&script, &Fake::default()).await {
            assert_ne!(failure.code, Code::Internal, "{source}: {failure:?}");
        }
        assert!(begin.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn arithmetic_errors_are_clean() {
    for source in [
        "1 / 0;",
        "1 % 0;",
        "9223372036854775807 + 1;",
        "-9223372036854775807 - 2;",
        "1 << 100000;",
        "2 ** 1000;",
        "[1][5];",
        "\"a\"[9];",
        "parse_int(\"x\");",
        "let x = (); x.foo;",
        "parse_json(\"[\");",
        "throw #{ a: [1] };",
    ] {
        let ended = run(&script(source), &Fake::default()).await;
        if let Err(Stop::Failed(failure)) = &ended {
            assert_eq!(failure.code, Code::ScriptError, "{source}: {failure:?}");
            assert!(failure.message.starts_with("test.rhai:1:"), "{failure:?}");
        }
    }
}

#[tokio::test]
async fn the_pool_goes_on_after_attacks() {
    let sandboxes = sandboxes();
    for attack in ["loop { }", "let s = \"x\"; loop { s += s; }", "fn f() { f() } f();"] {
        let host = Fake::default();
        let ended = sandboxes.evaluate(&script(attack), &host, CancellationToken::new()).await;
        assert!(ended.is_err());
        still_works(&sandboxes).await;
    }
    sandboxes.close().await;
}

mod random {
    use proptest::prelude::*;

    use super::*;

    /// Words that make programs rather than noise.
    const WORDS: &[&str] = &[
        "let a = ",
        "a",
        "b",
        "1",
        "\"x\"",
        "#{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ";",
        "{",
        "if ",
        "else ",
        "loop ",
        "for i in ",
        "0..9",
        "fn f(",
        "f(",
        "|x| ",
        "return ",
        "throw ",
        "try ",
        "catch ",
        "machine(",
        "volume(",
        "params",
        ".",
        "wait()",
        "call",
        "=",
        "==",
        "+",
        ",",
        ":",
        "??",
        "`${",
        "`",
        "switch ",
        "=> ",
        "while ",
        "output(",
        "log(",
        "Fn(",
        "this",
        "print(",
        "()",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

        #[test]
        fn no_text_breaks_the_parent(texts in prop::collection::vec(prop_oneof![
            prop::collection::vec(prop::sample::select(WORDS), 1..60).prop_map(|w| w.concat()),
            "\\PC{0,200}",
            any::<String>(),
        ], 8)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let sandboxes = sandboxes();
                for text in texts {
                    let (host, mut script) = (Fake::default(), script(&text));
                    script.limits.cpu_ms = 2000;
                    script.limits.wall_ms = 10_000;
                    let ended = sandboxes.evaluate(&script, &host, CancellationToken::new()).await;
                    if let Err(Stop::Failed(failure)) = ended {
                        assert_ne!(failure.code, Code::Internal, "{text:?}: {failure:?}");
                    }
                }
                sandboxes.close().await;
            });
        }
    }
}
