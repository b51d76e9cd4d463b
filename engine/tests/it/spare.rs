//! The child that is forked ahead: used once, gone with whoever it belongs to, and never the cause
//! of a failure.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rhizome_engine::{Sandboxes, Script};
use rhizome_model::{Code, Limits};
use serde_json::json;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::processes::{STUCK, calm, evaluating, has_ended, is_gone, limit, send, status, waiting};
use crate::support::{Fake, failed, sandboxes, script};

async fn works(sandboxes: &Sandboxes) {
    let (host, script) = (Fake::default(), script("output(\"ok\", 1);"));
    let ended = sandboxes.evaluate(&script, &host, CancellationToken::new()).await;
    assert_eq!(ended.unwrap().outputs["ok"], json!(1));
}

fn stuck() -> (Fake, Script) {
    (Fake { stuck: BTreeSet::from(["data"]), ..Fake::default() }, script(STUCK))
}

#[tokio::test]
async fn it_is_used_once() {
    let sandboxes = sandboxes();
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let (_, spare) = calm().await;
        works(&sandboxes).await;
        is_gone(spare).await;
        assert!(seen.insert(spare), "{spare} was there before");
    }
    sandboxes.close().await;
}

#[tokio::test]
async fn it_waits_without_using_processor_time() {
    let sandboxes = sandboxes();
    let (zygote, spare) = calm().await;
    let switches = |pid: u32| {
        let status = status(pid).unwrap();
        ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"].map(|key| status[key].clone())
    };
    // It is on its way into its wait still.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = [zygote, spare].map(switches);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!([zygote, spare].map(switches), before);
    assert_eq!(calm().await, (zygote, spare));
    sandboxes.close().await;
}

#[tokio::test]
async fn one_that_was_killed_fails_nobody() {
    let sandboxes = sandboxes();
    for _ in 0..10 {
        let (_, spare) = calm().await;
        send(spare, Signal::SIGKILL);
        // It may be dead, or not quite yet.
        works(&sandboxes).await;
    }
    let (_, spare) = calm().await;
    send(spare, Signal::SIGKILL);
    is_gone(spare).await;
    works(&sandboxes).await;
    calm().await;
    sandboxes.close().await;
}

#[tokio::test]
async fn one_that_dies_with_the_script_in_its_pipe_fails_nobody() {
    let sandboxes = sandboxes();
    for source in
        ["output(\"ok\", 1);".to_owned(), format!("{}output(\"ok\", 1);", "1;".repeat(32_000))]
    {
        let (_, spare) = calm().await;
        send(spare, Signal::SIGSTOP);
        let (host, script) = (Fake::default(), script(&source));
        let mut evaluation =
            std::pin::pin!(sandboxes.evaluate(&script, &host, CancellationToken::new()));
        let early = timeout(Duration::from_millis(100), &mut evaluation).await;
        assert!(early.is_err(), "{early:?}");
        send(spare, Signal::SIGKILL);
        assert_eq!(evaluation.await.unwrap().outputs["ok"], json!(1));
    }
    sandboxes.close().await;
}

#[tokio::test]
async fn it_goes_with_the_zygote() {
    let sandboxes = sandboxes();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let (zygote, spare) = calm().await;
        let begin = Instant::now();
        send(zygote, signal);
        is_gone(spare).await;
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        works(&sandboxes).await;
    }
    calm().await;
    sandboxes.close().await;
}

/// Not a test: what the next one kills.
#[tokio::test]
#[ignore = "waits to be killed"]
async fn a_parent() {
    let sandboxes = sandboxes();
    let (zygote, spare) = calm().await;
    println!("\nchildren {zygote} {spare}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    sandboxes.close().await;
}

#[tokio::test]
async fn it_goes_with_its_parent() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "spare::a_parent", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let line =
        lines.map_while(Result::ok).find_map(|l| Some(l.strip_prefix("children ")?.to_owned()));
    let pids: Vec<u32> = line.unwrap().split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| status(*pid).is_some()));
    parent.kill().unwrap();
    parent.wait().unwrap();
    for pid in pids {
        has_ended(pid).await;
    }
}

#[tokio::test]
async fn of_two_at_once_one_gets_it() {
    let sandboxes = sandboxes();
    let (_, spare) = calm().await;
    let (host, script) = stuck();
    let stop = CancellationToken::new();
    let evaluate = || sandboxes.evaluate(&script, &host, stop.clone());
    let both = async { tokio::join!(evaluate(), evaluate()) };
    let look = async {
        let pids = evaluating(2).await;
        assert!(pids.contains(&spare), "{spare} {pids:?}");
        // The next finds one again, while these are at it.
        let next = waiting().await;
        works(&sandboxes).await;
        is_gone(next).await;
        assert_eq!(evaluating(2).await, pids);
        stop.cancel();
    };
    let ((first, second), ()) = tokio::join!(both, look);
    assert!(first.is_err() && second.is_err());
    sandboxes.close().await;
}

#[tokio::test]
async fn limits_are_those_of_the_evaluation() {
    let sandboxes = sandboxes();
    let mut spaces = Vec::new();
    for (memory, cpu_ms) in [(48 << 20, 300), (96 << 20, 8000), (48 << 20, 300)] {
        let (_, spare) = calm().await;
        let (host, mut script) = stuck();
        script.limits = Limits { memory, cpu_ms, ..script.limits };
        let stop = CancellationToken::new();
        let evaluation = sandboxes.evaluate(&script, &host, stop.clone());
        let look = async {
            assert_eq!(evaluating(1).await, [spare]);
            let space: u64 = limit(spare, "Max address space").unwrap().parse().unwrap();
            spaces.push(space);
            let seconds = (cpu_ms.div_ceil(1000) + 1).to_string();
            assert_eq!(limit(spare, "Max cpu time"), Some(seconds));
            stop.cancel();
        };
        assert!(tokio::join!(evaluation, look).0.is_err());
    }
    assert_eq!(spaces[1] - spaces[0], 48 << 20);
    assert_eq!(spaces[2], spaces[0]);
    sandboxes.close().await;
}

/// As `limits::memory` and `limits::processor_time`, in a child that was forked ahead.
#[tokio::test]
async fn limits_end_it_as_they_end_others() {
    let sandboxes = sandboxes();
    let hoard = "let keep = []; let s = \"x\"; while s.len() < 32000 { s += s; } \
                 for i in 0..4000 { let t = s + i; keep.push(|| t); }";
    let endless = "let x = 0; loop { x += 1; }";
    for (source, words) in [(hoard, "48 MiB of memory"), (endless, "300 ms of processor time")] {
        calm().await;
        let (host, mut script) = (Fake::default(), script(source));
        let changed = Limits { memory: 48 << 20, cpu_ms: 300, ..script.limits };
        script.limits = Limits { operations: u64::MAX, ..changed };
        let failure = failed(sandboxes.evaluate(&script, &host, CancellationToken::new()).await);
        assert_eq!(failure.code, Code::ScriptLimit, "{failure:?}");
        assert!(failure.message.contains(words), "{failure}");
    }
    sandboxes.close().await;
}

#[tokio::test]
async fn the_time_that_it_waited_does_not_count() {
    let sandboxes = sandboxes();
    calm().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (host, mut script) = (Fake::default(), script("output(\"ok\", 1);"));
    script.limits.wall_ms = 1000;
    sandboxes.evaluate(&script, &host, CancellationToken::new()).await.unwrap();
    sandboxes.close().await;
}
