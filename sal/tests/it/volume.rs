//! Volumes: the size is enforced by btrfs.

use std::fs::{self, File};
use std::io::Write;
use std::process::Command;

use rhizome_model::Code;
use serde_json::json;

use crate::world::{World, assert_code, id};

/// Writes until the system refuses or `mib` are on disk.
fn fill(path: &std::path::Path, mib: usize) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for _ in 0..mib {
        file.write_all(&[7; 1 << 20])?;
    }
    file.sync_all()
}

#[tokio::test]
async fn writing_beyond_the_size_fails_and_growing_helps() {
    let world = World::new().await;
    let id = id("1/demo/data");
    world.volumes.ensure(&id, &json!({ "size": "8MiB" })).await.unwrap();
    let path = world.pool().join("volumes/1.demo.data");
    let error = fill(&path.join("big"), 20).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(122), "EDQUOT is expected, not {error}");

    fs::remove_file(path.join("big")).unwrap();
    let status = world.volumes.ensure(&id, &json!({ "size": "64MiB" })).await.unwrap().status;
    assert_eq!(status["size"], 64 << 20);
    fill(&path.join("big"), 20).unwrap();

    let error =
        assert_code(world.volumes.ensure(&id, &json!({ "size": "10MiB" })).await, Code::BelowUse);
    assert!(error.to_string().contains("cannot shrink"), "{error}");
    let status = world.volumes.observe(&id).await.unwrap().unwrap();
    assert_eq!(status["size"], 64 << 20);
    assert!(status["used"].as_u64().unwrap() >= 20 << 20, "{status}");

    world.volumes.ensure(&id, &json!({ "size": "32MiB" })).await.unwrap();
    fill(&path.join("more"), 20).unwrap_err();
}

#[tokio::test]
async fn what_the_pool_does_not_have_is_refused() {
    let world = World::new().await;
    let id = id("1/demo/data");
    assert_code(world.volumes.ensure(&id, &json!({ "size": "2GiB" })).await, Code::PoolFull);
    assert_code(world.volumes.ensure(&id, &json!({ "size": 1 })).await, Code::InvalidSpec);
    assert_code(world.volumes.ensure(&id, &json!({ "sise": 1 })).await, Code::InvalidSpec);
    world.assert_clean();
}

#[tokio::test]
async fn ensure_and_delete_may_be_repeated_and_nothing_is_left() {
    let world = World::new().await;
    let (a, b) = (id("1/demo/a"), id("1/demo/b"));
    for volume in [&a, &b, &a] {
        world.volumes.ensure(volume, &json!({ "size": "8MiB" })).await.unwrap();
    }
    assert_eq!(world.volumes.list().await.unwrap(), [a.clone(), b.clone()]);
    assert_eq!(world.volumes.observe(&id("1/demo/c")).await.unwrap(), None);

    // Subvolumes that somebody has nested in it, one of them read-only, go with it.
    let path = world.pool().join("volumes/1.demo.a");
    for nested in ["one", "one/two"] {
        let mut make = Command::new("btrfs");
        make.args(["-q", "subvolume", "create"]).arg(path.join(nested));
        assert!(make.status().unwrap().success());
    }
    let set = Command::new("btrfs")
        .args(["property", "set"])
        .arg(path.join("one/two"))
        .args(["ro", "true"])
        .status();
    assert!(set.unwrap().success());
    for volume in [&a, &b, &a] {
        world.volumes.delete(volume).await.unwrap();
    }
    world.assert_clean();
    assert!(world.volumes.list().await.unwrap().is_empty());
    let list =
        Command::new("btrfs").args(["subvolume", "list"]).arg(world.pool()).output().unwrap();
    assert_eq!(String::from_utf8(list.stdout).unwrap(), "");
}

#[tokio::test]
async fn the_quota_group_goes_with_the_volume() {
    let world = World::new().await;
    // The kernel cleans up after a commit, which it makes every 30 seconds on its own.
    let mut often = Command::new("mount");
    often.args(["-o", "remount,commit=1"]).arg(world.pool());
    assert!(often.status().unwrap().success());
    let groups = || {
        let list = Command::new("btrfs").args(["subvolume", "sync"]).arg(world.pool()).status();
        assert!(list.unwrap().success());
        let sysfs = fs::read_dir("/sys/fs/btrfs").unwrap().flatten().find(|e| {
            let device = crate::node::loop_of(&world.config.state.join("pool.img"));
            e.path().join("devices").join(device).exists()
        });
        let names = crate::world::names(&sysfs.unwrap().path().join("qgroups"));
        names.into_iter().filter(|n| n.starts_with("0_")).count()
    };
    let before = groups();
    for n in 0..3 {
        let id = id(&format!("1/demo/v{n}"));
        world.volumes.ensure(&id, &json!({ "size": "8MiB" })).await.unwrap();
        fill(&world.pool().join("volumes").join(id.file_name()).join("x"), 2).unwrap();
    }
    assert_eq!(groups(), before + 3);
    for n in 0..3 {
        world.volumes.delete(&id(&format!("1/demo/v{n}"))).await.unwrap();
    }
    groups();
    // A later deletion takes along what the kernel has cleaned up meanwhile.
    let last = id("1/demo/last");
    world.volumes.ensure(&last, &json!({ "size": "8MiB" })).await.unwrap();
    world.volumes.delete(&last).await.unwrap();
    let left = groups();
    assert!(left <= before + 1, "{before} groups before, {left} after");
}
