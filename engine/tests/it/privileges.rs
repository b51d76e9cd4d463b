//! What a child that waits for a script still has: nothing.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rhizome_engine::Sandboxes;
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, sandboxes, script};

async fn idle(sandboxes: &Sandboxes, wanted: usize) -> Vec<u32> {
    let begin = Instant::now();
    loop {
        let pids = sandboxes.idle_pids();
        if pids.len() == wanted {
            return pids;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{pids:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn link(path: String) -> String {
    fs::read_link(path).unwrap().to_string_lossy().into_owned()
}

#[tokio::test]
async fn a_waiting_child_has_no_privileges() {
    let sandboxes = sandboxes(1);
    let pid = idle(&sandboxes, 1).await[0];
    let status = status(pid);
    for (key, value) in [
        ("Seccomp", "2"),
        ("NoNewPrivs", "1"),
        ("CapEff", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("Threads", "1"),
    ] {
        assert_eq!(status[key], value, "{key}");
    }
    let root = nix::unistd::geteuid().is_root();
    if root {
        assert_eq!(status["Uid"], "65534\t65534\t65534\t65534");
        assert_eq!(status["Gid"], "65534\t65534\t65534\t65534");
        assert_eq!(status["Groups"], "");
        let net = |who: &str| link(format!("/proc/{who}/ns/net"));
        assert_ne!(net(&pid.to_string()), net("self"), "it should have a network of its own");
    }
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.is_empty(), "{environment:?}");
    let mut open: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
    for fd in open {
        assert!(link(format!("/proc/{pid}/fd/{fd}")).starts_with("pipe:"));
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for name in ["Max open files", "Max file size", "Max processes", "Max core file size"] {
        let line = limits.lines().find(|l| l.starts_with(name)).unwrap();
        let values: Vec<_> = line[name.len()..].split_whitespace().take(2).collect();
        assert_eq!(values, ["0", "0"], "{line}");
    }
    sandboxes.close().await;
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "it was not reaped");
}

#[tokio::test]
async fn a_child_is_used_once_and_replaced() {
    let sandboxes = sandboxes(1);
    let first = idle(&sandboxes, 1).await[0];
    let host = Fake::default();
    sandboxes
        .evaluate(&script("output(\"a\", 1);"), &host, CancellationToken::new())
        .await
        .unwrap();
    let second = idle(&sandboxes, 1).await[0];
    assert_ne!(first, second);
    sandboxes.close().await;
}

#[tokio::test]
async fn a_zygote_that_is_killed_is_replaced() {
    let (sandboxes, host) = (sandboxes(1), Fake::default());
    let waiting = idle(&sandboxes, 1).await;
    // Each test has a process of its own, so its children are the zygote's and the zygote.
    let zygote = children().into_iter().find(|pid| !waiting.contains(pid)).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(zygote.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    for _ in 0..3 {
        let script = script("output(\"a\", 1);");
        sandboxes.evaluate(&script, &host, CancellationToken::new()).await.unwrap();
    }
    assert!(!children().contains(&zygote), "it was not reaped");
    sandboxes.close().await;
}

fn children() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap();
    let all: String = tasks.map(|task| of(task.unwrap())).collect();
    all.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[tokio::test]
async fn dropping_everything_ends_the_children() {
    let sandboxes = sandboxes(2);
    let pids = idle(&sandboxes, 2).await;
    drop(sandboxes);
    let begin = Instant::now();
    let alive = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };
    while pids.iter().any(alive) {
        assert!(begin.elapsed() < Duration::from_secs(10), "{pids:?} live on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
