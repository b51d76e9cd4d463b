//! A node goes up and down; what it holds stays.

use std::fs;
use std::path::Path;
use std::process::Command;

use rhizome_model::{Bytes, Code, Done, WorkloadKind};
use rhizome_sal::{Pool, Sal};
use serde_json::json;

use crate::world::{World, assert_code, id};

/// The loop device of a file, without `/dev/`; empty when it has none.
pub fn loop_of(file: &Path) -> String {
    let output = Command::new("losetup")
        .args(["--noheadings", "--output", "NAME", "--associated"])
        .arg(file)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().trim_start_matches("/dev/").to_owned()
}

#[tokio::test]
async fn down_and_up_brings_everything_back() {
    let world = World::new().await;
    let (data, web) = (id("1/demo/data"), id("1/demo/web"));
    let size = json!({ "size": "8MiB" });
    world.volumes.ensure(&data, &size).await.unwrap();
    let spec = json!({
        "image": world.image, "mounts": [{ "volume": "data", "path": "/data" }],
    });
    world.machines.ensure(&web, &spec).await.unwrap();
    assert_eq!(world.exec(&web, "echo kept > /data/a; echo kept > /root/b").await.0, 0);
    let once = id("1/demo/once");
    let mut run_once = world.script("echo x >> /root/runs");
    run_once["restart"] = json!("never");
    world.machines.ensure(&once, &run_once).await.unwrap();
    world.until(&once, |s| s["state"] == "exited").await;

    world.sal.down().await.unwrap();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!mounts.contains(&*world.config.state.to_string_lossy()));
    assert_eq!(loop_of(&world.config.state.join("pool.img")), "");
    let mark = world.mark();
    assert!(!Path::new("/sys/class/net").join(&mark).exists());
    for hierarchy in crate::world::hierarchies() {
        assert!(!hierarchy.join(&mark).exists(), "{}", hierarchy.display());
    }
    assert_eq!(crate::world::processes(&world.config.state.to_string_lossy()), [""; 0]);
    assert_code(Sal::open(world.config.clone()).await.map(drop), Code::Unavailable);

    let sal = Sal::up(world.config.clone()).await.unwrap();
    sal.workload(WorkloadKind::Volume).ensure(&data, &size).await.unwrap();
    let machines = sal.workload(WorkloadKind::Machine);
    assert_eq!(machines.ensure(&web, &spec).await.unwrap().done, Done::Restored);
    assert_eq!(machines.ensure(&once, &run_once).await.unwrap().done, Done::Unchanged);
    assert_eq!(world.exec(&web, "cat /data/a /root/b").await, (0, "kept\nkept\n".into()));
    // What ran once does not run again because the node did.
    assert_eq!(fs::read_to_string(world.root(&once).join("root/runs")).unwrap(), "x\n");
    assert_eq!(world.status(&once).await["state"], "exited");
}

#[tokio::test]
async fn up_adopts_what_is_there_and_open_sees_it() {
    let world = World::new().await;
    let web = id("1/demo/web");
    let status = world.machines.ensure(&web, &world.script("sleep 1000")).await.unwrap().status;
    let again = Sal::up(world.config.clone()).await.unwrap();
    let opened = Sal::open(world.config.clone()).await.unwrap();
    for sal in [again, opened] {
        let seen = sal.workload(WorkloadKind::Machine).observe(&web).await.unwrap().unwrap();
        assert_eq!(seen["pid"], status["pid"]);
    }
    let facts = world.sal.describe();
    let fact = |name| facts.iter().find(|f| f.name == name).unwrap().value.clone();
    assert!(["simple quotas", "quota groups"].contains(&&*fact("quota")));
    assert!(fact("machine").starts_with("runc") || fact("machine").starts_with("crun"));
    let hypervisors = ["; qemu ", "; cloud-hypervisor "];
    assert!(hypervisors.iter().any(|h| fact("machine").contains(h)), "{}", fact("machine"));
    assert_eq!(fact("network"), "plain IPv6");
    let capacity = world.sal.capacity().unwrap();
    assert!(capacity.disk > Bytes::mib(800) && capacity.disk < Bytes::gib(1), "{capacity}");
    assert!(capacity.cpu.millis() >= 1000 && capacity.memory > Bytes::mib(256));
}

#[tokio::test]
async fn up_sweeps_away_what_a_killed_import_has_left() {
    let world = World::new().await;
    let left = world.pool().join("images/.new-0123");
    let mut make = Command::new("btrfs");
    make.args(["-q", "subvolume", "create"]).arg(&left);
    assert!(make.status().unwrap().success());
    Sal::up(world.config.clone()).await.unwrap();
    assert!(!left.exists());
}

#[tokio::test]
async fn a_node_that_cannot_be_is_refused() {
    let world = World::new().await;
    let mut config = world.config.clone();
    config.state = world.folder.path().join("file");
    fs::write(&config.state, "").unwrap();
    Sal::up(config.clone()).await.map(drop).unwrap_err();

    config.state = "/proc/rhizome".into();
    Sal::up(config.clone()).await.map(drop).unwrap_err();

    config.state = world.folder.path().join("other");
    config.pool = Pool::LoopFile { size: Bytes::mib(10) };
    assert_code(Sal::up(config.clone()).await.map(drop), Code::BadRequest);
    config.pool = Pool::Mounted(world.folder.path().join("not-there"));
    assert_code(Sal::up(config).await.map(drop), Code::Unavailable);
}
