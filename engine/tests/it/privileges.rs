//! What a child that evaluates still has: nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_engine::Sandboxes;
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, sandboxes, script};

/// Does this while a child evaluates, which is then given up. Each test has a process of its own, so
/// its children are the zygote, which was there before, and the child.
async fn while_evaluating<T>(sandboxes: &Sandboxes, act: impl FnOnce(u32) -> T) -> T {
    let host = Fake { stuck: BTreeSet::from(["data"]), ..Fake::default() };
    let script = script("let v = volume(\"data\", #{ size: \"1MiB\" }); v.used");
    let before: Vec<_> = children().into_iter().collect();
    let stop = CancellationToken::new();
    let evaluation = sandboxes.evaluate(&script, &host, stop.clone());
    let child = async {
        let begin = Instant::now();
        loop {
            let asked = host.asked().iter().any(|asked| asked.starts_with("read"));
            if let (true, Some(pid)) = (asked, children().into_iter().find(|c| !before.contains(c)))
            {
                return act(pid);
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "no child");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        ended = evaluation => panic!("{ended:?}"),
        acted = child => acted,
    }
}

/// The zygote, when it has forked once.
async fn zygote(sandboxes: &Sandboxes) -> u32 {
    let host = Fake::default();
    let script = script("output(\"a\", 1);");
    sandboxes.evaluate(&script, &host, CancellationToken::new()).await.unwrap();
    let begin = Instant::now();
    loop {
        if let [zygote] = children().as_slice() {
            return *zygote;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", children());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn children() -> Vec<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok());
    let own = std::process::id().to_string();
    // Others come and go meanwhile.
    let is_ours = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        parent.is_some_and(|parent| parent.trim() == own)
    };
    pids.filter_map(|name| name.parse().ok()).filter(is_ours).collect()
}

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect()
}

fn link(path: String) -> String {
    fs::read_link(path).unwrap().to_string_lossy().into_owned()
}

fn has_nothing(pid: u32) {
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
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
        assert_eq!(mounts.lines().count(), 1, "it should see no file system: {mounts}");
        assert!(mounts.starts_with("none / tmpfs ro,"), "{mounts}");
        assert_eq!(fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0);
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
}

#[tokio::test]
async fn a_child_that_evaluates_has_no_privileges() {
    let sandboxes = sandboxes();
    zygote(&sandboxes).await;
    let pid = while_evaluating(&sandboxes, |pid| {
        has_nothing(pid);
        pid
    })
    .await;
    sandboxes.close().await;
    is_gone(pid).await;
}

#[tokio::test]
async fn a_zygote_that_is_killed_is_replaced() {
    let (sandboxes, host) = (sandboxes(), Fake::default());
    let first = zygote(&sandboxes).await;
    kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL).unwrap();
    for _ in 0..3 {
        let script = script("output(\"a\", 1);");
        sandboxes.evaluate(&script, &host, CancellationToken::new()).await.unwrap();
    }
    assert!(!children().contains(&first), "it was not reaped");
    sandboxes.close().await;
}

#[tokio::test]
async fn dropping_everything_ends_the_children() {
    let sandboxes = sandboxes();
    let zygote = zygote(&sandboxes).await;
    let child = while_evaluating(&sandboxes, |pid| pid).await;
    drop(sandboxes);
    is_gone(child).await;
    is_gone(zygote).await;
}

async fn is_gone(pid: u32) {
    let begin = Instant::now();
    while fs::exists(format!("/proc/{pid}")).unwrap() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{pid} lives on, or was not reaped");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
