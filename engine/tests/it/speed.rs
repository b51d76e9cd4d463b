//! That a warm sandbox is quick and small; generous bounds, the numbers are printed.

use std::fs;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::support::{Fake, sandboxes, script};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_sandbox_is_quick_and_small() {
    let sandboxes = sandboxes(2);
    let (host, script) = (Fake::default(), script("output(\"ok\", 1);"));
    let mut times = Vec::new();
    for _ in 0..40 {
        let begin = Instant::now();
        while sandboxes.idle_pids().len() < 2 {
            assert!(begin.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begin = Instant::now();
        sandboxes.evaluate(&script, &host, CancellationToken::new()).await.unwrap();
        times.push(begin.elapsed());
    }
    times.sort();
    let pid = loop {
        if let Some(pid) = sandboxes.idle_pids().first() {
            break *pid;
        }
        tokio::task::yield_now().await;
    };
    let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let kib = |key: &str| -> u64 {
        let line = memory.lines().find(|l| l.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (rss, private) = (kib("Rss:"), kib("Private_Dirty:"));
    println!("warm: p50 {:?}, p95 {:?}", times[20], times[38]);
    println!("idle child: {rss} KiB RSS, {} KiB PSS, {private} KiB private", kib("Pss:"));
    let cold = crate::support::sandboxes(0);
    let mut starts = Vec::new();
    for _ in 0..20 {
        let begin = Instant::now();
        cold.evaluate(&script, &host, CancellationToken::new()).await.unwrap();
        starts.push(begin.elapsed());
    }
    starts.sort();
    println!("cold: p50 {:?}, p95 {:?}", starts[10], starts[18]);
    cold.close().await;
    assert!(times[20] < Duration::from_millis(50), "{times:?}");
    assert!(private < 16 << 10, "{memory}");
    sandboxes.close().await;
}
