//! What a child that evaluates still has: nothing.

use std::fs;

use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use crate::processes::{
    calm, children, evaluating, is_gone, limit, send, status, while_evaluating,
};
use crate::support::{Fake, sandboxes, script};

fn link(path: String) -> String {
    fs::read_link(path).unwrap().to_string_lossy().into_owned()
}

/// `open` are its descriptors.
fn has_no_privileges(pid: u32, open: &[&str]) {
    let status = status(pid).unwrap();
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
    let mut found: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, open);
    for fd in open {
        assert!(link(format!("/proc/{pid}/fd/{fd}")).starts_with("pipe:"));
    }
}

fn has_nothing(pid: u32) {
    has_no_privileges(pid, &["0", "1", "2"]);
    for name in ["Max open files", "Max file size", "Max processes", "Max core file size"] {
        assert_eq!(limit(pid, name).as_deref(), Some("0"), "{name}");
    }
}

#[tokio::test]
async fn a_child_that_evaluates_has_no_privileges() {
    let sandboxes = sandboxes();
    // The first is forked as it is asked for.
    let first = while_evaluating(&sandboxes, |pid| {
        has_nothing(pid);
        pid
    })
    .await;
    let (_, spare) = calm().await;
    // With one end of the pipe that tells it of the zygote.
    has_no_privileges(spare, &["0", "1", "2", "3"]);
    while_evaluating(&sandboxes, |pid| {
        assert_eq!(pid, spare);
        has_nothing(pid);
    })
    .await;
    sandboxes.close().await;
    is_gone(first).await;
    is_gone(spare).await;
}

#[tokio::test]
async fn a_zygote_that_is_killed_is_replaced() {
    let (sandboxes, host) = (sandboxes(), Fake::default());
    let (first, _) = calm().await;
    send(first, Signal::SIGKILL);
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
    let child = while_evaluating(&sandboxes, |pid| pid).await;
    let (zygote, spare) = calm().await;
    drop(sandboxes);
    for pid in [child, zygote, spare] {
        is_gone(pid).await;
    }
    assert!(evaluating(0).await.is_empty());
}
