//! What somebody takes from a database, or stops of it, is put right.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use rhizome_model::WorkloadKind;
use serde_json::{Value, json};

use super::client::{
    Client, PASSWORD, assert_gone, databases, engine_pid, ensure, is_good, spec, status,
};
use crate::crash::kind_killed_after;
use crate::world::{World, id, names};

#[tokio::test]
async fn whatever_is_killed_while_it_is_made_or_deleted_ends_as_asked() {
    let world = World::new().await;
    let (name, spec) = ("1/demo/db", spec("64MiB"));
    let id = id(name);
    let mut unfinished = 0;
    for round in 0..14u32 {
        let after = Duration::from_millis(10) * (round + 1);
        let kind = WorkloadKind::Herodb;
        unfinished += usize::from(!kind_killed_after(&world, kind, name, &spec, false, after));
        if round % 3 == 2 {
            databases(&world).delete(&id).await.unwrap();
            assert_gone(&world);
            continue;
        }
        let status = ensure(&world, &id, &spec).await.unwrap().status;
        assert!(is_good(&status), "{status}");
        let mut client = Client::with(&status, PASSWORD);
        assert_eq!(client.ask(&["SET", "a", "1"]), "+OK");
        assert_eq!(databases(&world).list().await.unwrap(), std::slice::from_ref(&id));
        if round % 3 == 1 {
            kind_killed_after(&world, kind, name, &spec, true, after / 3);
            databases(&world).delete(&id).await.unwrap();
            assert_gone(&world);
        }
    }
    assert!(unfinished >= 5, "only {unfinished} were killed before they were done");
    databases(&world).delete(&id).await.unwrap();
    assert_gone(&world);
}

#[tokio::test]
async fn what_is_taken_from_it_is_put_back() {
    let world = World::new().await;
    let (id, spec) = (id("1/demo/db"), spec("64MiB"));
    let made = ensure(&world, &id, &spec).await.unwrap().status;
    let pid = engine_pid(&world, &id);
    let run = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
    };
    let link = names(std::path::Path::new("/sys/class/net")).into_iter().find(|link| {
        let alias =
            fs::read_to_string(format!("/sys/class/net/{link}/ifalias")).unwrap_or_default();
        alias.trim() == format!("rhizome:{}:herodb:{id}", world.mark())
    });
    run("ip", &["link", "delete", &link.unwrap()]);
    let root = world.pool().join("herodbs").join(id.file_name());
    run("btrfs", &["qgroup", "limit", "-e", "none", root.to_str().unwrap()]);
    let kept = databases(&world).keep(&id, &spec).await.unwrap();
    let drifts: Vec<_> = kept.drifted.iter().map(|d| json!(d.drift)).collect();
    assert_eq!(drifts, [json!("limit"), json!("network")], "{kept:?}");
    assert!(is_good(&kept.status), "{}", kept.status);
    assert_eq!(Client::with(&made, PASSWORD).ask(&["PING"]), "+PONG");
    assert_eq!(engine_pid(&world, &id), pid, "it was not started again");
    assert!(databases(&world).keep(&id, &spec).await.unwrap().drifted.is_empty());

    // The whole node goes down and comes up again.
    assert_eq!(Client::with(&made, PASSWORD).ask(&["SET", "a", "1"]), "+OK");
    world.sal.down().await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let sal = rhizome_sal::Sal::up(world.config.clone()).await.unwrap();
    let kept = sal.workload(WorkloadKind::Herodb).keep(&id, &spec).await.unwrap();
    assert_eq!(kept.drifted.len(), 1, "{kept:?}");
    assert!(is_good(&kept.status), "{}", kept.status);
    assert_eq!(Client::with(&kept.status, PASSWORD).ask(&["GET", "a"]), "1");
}

#[tokio::test]
async fn one_that_hangs_is_seen_and_one_that_goes_on_is_good_again() {
    let world = World::new().await;
    let (id, spec) = (id("1/demo/db"), spec("64MiB"));
    ensure(&world, &id, &spec).await.unwrap();
    let pid = engine_pid(&world, &id);
    kill(pid, Signal::SIGSTOP).unwrap();
    let hung = status(&world, &id).await;
    let reason = hung["health"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("does not answer: nothing came within 2s"), "{hung}");
    assert_eq!((&hung["state"], &hung["keys"]), (&json!("running"), &Value::Null));
    kill(pid, Signal::SIGCONT).unwrap();
    let good = status(&world, &id).await;
    assert!(is_good(&good));
    assert_eq!(Client::with(&good, PASSWORD).ask(&["SET", "a", "1"]), "+OK");

    // Who looks after it starts it again.
    kill(pid, Signal::SIGSTOP).unwrap();
    let kept = databases(&world).keep(&id, &spec).await.unwrap();
    assert_eq!(json!(kept.drifted[0].drift), "hung", "{kept:?}");
    assert!(is_good(&kept.status), "{}", kept.status);
    assert_ne!(engine_pid(&world, &id), pid);
    assert_eq!(Client::with(&kept.status, PASSWORD).ask(&["GET", "a"]), "1");
}
