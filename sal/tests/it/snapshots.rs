//! Snapshots: what a volume held stays, comes back whole, and takes no room that is not the volume's.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rhizome_model::{Action, Bytes, Code, ResourceId, WorkloadKind};
use rhizome_sal::{NodeConfig, Pool, Sal, SalError, Workload};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::world::{SHIM, World, assert_code, id};

const CHILD: &str = "RHIZOME_SAL_SNAPSHOT_CHILD";

fn snapshot(name: &str) -> Action {
    Action::Snapshot { name: name.parse().unwrap() }
}

fn restore(name: &str) -> Action {
    Action::Restore { name: name.parse().unwrap() }
}

async fn act(
    volumes: &dyn Workload,
    id: &ResourceId,
    action: Action,
    by: &str,
) -> Result<Value, SalError> {
    let (sender, _receiver) = mpsc::channel(1);
    volumes.act(id, &action, by, sender, CancellationToken::new()).await
}

async fn volume(world: &World, size: &str) -> (ResourceId, PathBuf) {
    let id = id("1/demo/data");
    world.volumes.ensure(&id, &json!({ "size": size })).await.unwrap();
    let path = world.pool().join("volumes").join(id.file_name());
    (id, path)
}

fn write(path: &Path, mib: usize) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = fs::File::create(path)?;
    for _ in 0..mib {
        file.write_all(&[7; 1 << 20])?;
    }
    file.sync_all()
}

fn subvolumes(world: &World) -> String {
    let list = Command::new("btrfs").args(["subvolume", "list"]).arg(world.pool()).output();
    String::from_utf8(list.unwrap().stdout).unwrap()
}

/// The groups of volumes that the kernel knows.
fn rooms(world: &World) -> usize {
    let device = crate::node::loop_of(&world.config.state.join("pool.img"));
    let pools = fs::read_dir("/sys/fs/btrfs").unwrap().flatten();
    let pool = pools.map(|e| e.path()).find(|p| p.join("devices").join(&device).exists());
    let groups = crate::world::names(&pool.unwrap().join("qgroups"));
    groups.iter().filter(|name| name.starts_with("1_")).count()
}

#[tokio::test]
async fn what_was_kept_comes_back_and_who_asks_twice_is_told_the_same() {
    let world = World::new().await;
    let (id, path) = volume(&world, "32MiB").await;
    let volumes = world.volumes.as_ref();
    assert_eq!(rooms(&world), 1);
    fs::write(path.join("a"), "one").unwrap();
    let first = act(volumes, &id, snapshot("monday"), "job 1").await.unwrap();
    fs::write(path.join("a"), "two").unwrap();
    assert_eq!(act(volumes, &id, snapshot("monday"), "job 1").await.unwrap(), first);
    assert_code(act(volumes, &id, snapshot("monday"), "job 2").await, Code::Conflict);
    act(volumes, &id, snapshot("tuesday"), "job 2").await.unwrap();
    let status = volumes.observe(&id).await.unwrap().unwrap();
    assert_eq!(status["snapshots"][0], first);
    assert_eq!(status["snapshots"][1]["name"], "tuesday");
    let kept = world.pool().join("snapshots/1.demo.data/monday");
    assert_eq!(fs::read_to_string(kept.join("a")).unwrap(), "one");
    assert_eq!(fs::write(kept.join("a"), "x").unwrap_err().raw_os_error(), Some(30), "EROFS");

    let restored = act(volumes, &id, restore("monday"), "job 3").await.unwrap();
    assert_eq!((&restored["size"], &restored["empty"]), (&json!(32 << 20), &json!(false)));
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "one");
    fs::write(path.join("b"), "since").unwrap();
    act(volumes, &id, restore("monday"), "job 3").await.unwrap();
    assert!(path.join("b").exists(), "a repetition restores nothing a second time");
    act(volumes, &id, restore("tuesday"), "job 4").await.unwrap();
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "two");
    assert!(!path.join("b").exists());
    // A snapshot of what was restored is nobody's repetition.
    act(volumes, &id, snapshot("third"), "job 4").await.unwrap();

    assert_code(act(volumes, &id, restore("never"), "job 5").await, Code::NotFound);
    assert_code(
        act(volumes, &crate::world::id("1/demo/no"), snapshot("x"), "6").await,
        Code::NotFound,
    );
    assert_code(act(volumes, &id, Action::Start, "job 7").await, Code::BadRequest);
    for _ in 0..2 {
        let drop = Action::DropSnapshot { name: "monday".parse().unwrap() };
        act(volumes, &id, drop, "job 8").await.unwrap();
    }
    assert!(!kept.exists());
    assert_eq!(volumes.list().await.unwrap(), std::slice::from_ref(&id));
    volumes.delete(&id).await.unwrap();
    world.assert_clean();
    assert_eq!(subvolumes(&world), "", "a volume takes its snapshots with it");
    assert_eq!(rooms(&world), 0, "and what they had together");
}

#[tokio::test]
async fn a_volume_and_its_snapshots_have_one_size() {
    let world = World::new().await;
    // The kernel cleans up after a commit, which it makes every 30 seconds on its own.
    let mut often = Command::new("mount");
    often.args(["-o", "remount,commit=1"]).arg(world.pool());
    assert!(often.status().unwrap().success());
    let (id, path) = volume(&world, "24MiB").await;
    let volumes = world.volumes.as_ref();
    let used = async || {
        Command::new("sync").arg("-f").arg(world.pool()).status().unwrap();
        volumes.observe(&id).await.unwrap().unwrap()["used"].as_u64().unwrap() >> 20
    };
    write(&path.join("a"), 10).unwrap();
    act(volumes, &id, snapshot("kept"), "1").await.unwrap();
    assert_eq!(used().await, 10, "what is shared counts once");
    write(&path.join("b"), 10).unwrap();
    fs::remove_file(path.join("a")).unwrap();
    assert_eq!(used().await, 20, "what a snapshot keeps is still there");
    let error = write(&path.join("c"), 10).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(122), "EDQUOT is expected, not {error}");
    fs::remove_file(path.join("c")).unwrap();

    act(volumes, &id, restore("kept"), "2").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while used().await != 10 {
        assert!(Instant::now() < deadline, "{} MiB are used", used().await);
        Command::new("btrfs").args(["subvolume", "sync"]).arg(world.pool()).output().unwrap();
    }
    let error = write(&path.join("d"), 20).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(122), "the limit holds for what was restored: {error}");
    fs::remove_file(path.join("d")).unwrap();
    assert_code(volumes.ensure(&id, &json!({ "size": "8MiB" })).await, Code::BelowUse);
    volumes.ensure(&id, &json!({ "size": "40MiB" })).await.unwrap();
    write(&path.join("d"), 20).unwrap();

    // One of the same name that comes later has nothing to do with it.
    volumes.delete(&id).await.unwrap();
    volumes.ensure(&id, &json!({ "size": "24MiB" })).await.unwrap();
    write(&path.join("e"), 20).unwrap();
    assert_eq!(used().await, 20);
    write(&path.join("f"), 10).unwrap_err();
}

#[tokio::test]
async fn nothing_is_restored_under_a_machine_that_runs() {
    let world = World::new().await;
    let (data, path) = volume(&world, "32MiB").await;
    let web = id("1/demo/web");
    let mut spec = world.script("cat /data/a; sleep 1000");
    spec["mounts"] = json!([{ "volume": "data", "path": "/data" }]);
    fs::write(path.join("a"), "one\n").unwrap();
    let volumes = world.volumes.as_ref();
    world.machines.ensure(&web, &spec).await.unwrap();
    act(volumes, &data, snapshot("s"), "1").await.unwrap();
    world.exec(&web, "echo two > /data/a").await;
    let error = assert_code(act(volumes, &data, restore("s"), "2").await, Code::Conflict);
    assert!(error.to_string().contains("1/demo/web"), "{error}");
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "two\n");

    world.act(&web, Action::Stop).await.unwrap();
    act(volumes, &data, restore("s"), "2").await.unwrap();
    world.act(&web, Action::Start).await.unwrap();
    let (_, seen) = world.exec(&web, "cat /data/a").await;
    assert_eq!(seen, "one\n");
    world.exec(&web, "echo three > /data/a").await;
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "three\n");

    // Somebody else's machine with a volume of the same name is no hindrance.
    let other = id("1/other/data");
    world.volumes.ensure(&other, &json!({ "size": "8MiB" })).await.unwrap();
    act(volumes, &other, snapshot("s"), "3").await.unwrap();
    act(volumes, &other, restore("s"), "4").await.unwrap();
}

#[tokio::test]
async fn a_restart_that_is_asked_for_again_restarts_nothing() {
    let world = World::new().await;
    let web = id("1/demo/web");
    world.machines.ensure(&web, &world.script("sleep 1000")).await.unwrap();
    let machines = world.machines.as_ref();
    let one = act(machines, &web, Action::Restart, "job 1").await.unwrap();
    let same = act(machines, &web, Action::Restart, "job 1").await.unwrap();
    assert_eq!(one["pid"], same["pid"]);
    let two = act(machines, &web, Action::Restart, "job 2").await.unwrap();
    assert_ne!(one["pid"], two["pid"]);
}

#[tokio::test]
async fn snapshots_without_their_volume_are_still_the_volumes() {
    let world = World::new().await;
    let (id, path) = volume(&world, "8MiB").await;
    act(world.volumes.as_ref(), &id, snapshot("s"), "1").await.unwrap();
    let gone = Command::new("btrfs").args(["-q", "subvolume", "delete"]).arg(&path).status();
    assert!(gone.unwrap().success());
    assert_eq!(world.volumes.list().await.unwrap(), std::slice::from_ref(&id));
    world.volumes.delete(&id).await.unwrap();
    world.assert_clean();
    assert_eq!(subvolumes(&world), "");
}

/// Not a test of its own: the process that is killed while it acts.
#[tokio::test]
async fn child_process_that_is_killed() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let told: Value = serde_json::from_str(&told).unwrap();
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    let config = NodeConfig {
        key: text("key").parse().unwrap(),
        address: text("address").parse().unwrap(),
        state: text("state").into(),
        pool: Pool::LoopFile { size: Bytes::gib(1) },
        program: SHIM.into(),
        image_roots: Vec::new(),
    };
    let sal = Sal::open(config).await.unwrap();
    let volumes = sal.workload(WorkloadKind::Volume);
    let action = serde_json::from_value(told["action"].clone()).unwrap();
    act(volumes.as_ref(), &id("1/demo/data"), action, &text("by")).await.unwrap();
}

/// A process of its own that acts.
fn actor(world: &World, action: &Action, by: &str) -> Child {
    let told = json!({
        "key": world.config.key, "address": world.config.address, "state": world.config.state,
        "action": action, "by": by,
    });
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "snapshots::child_process_that_is_killed"])
        .env(CHILD, told.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap()
}

/// Acts in a process of its own and kills it after a while. Whether it was done.
fn killed_after(world: &World, action: &Action, by: &str, after: Duration) -> bool {
    let mut child = actor(world, action, by);
    std::thread::sleep(after);
    let done = child.try_wait().unwrap().is_some();
    let _ = child.kill();
    child.wait().unwrap();
    done
}

/// A volume whose files all say the same, or it was mixed.
fn says(path: &Path) -> String {
    let words: Vec<_> =
        (0..20).map(|n| fs::read_to_string(path.join(n.to_string())).unwrap()).collect();
    assert!(words.iter().all(|w| w == &words[0]), "old and new are mixed: {words:?}");
    words[0].clone()
}

#[tokio::test]
async fn who_is_killed_while_acting_is_made_up_for_by_asking_again() {
    let world = World::new().await;
    let (id, path) = volume(&world, "32MiB").await;
    let volumes = world.volumes.as_ref();
    let fill = |word: &str| {
        (0..20).for_each(|n| fs::write(path.join(n.to_string()), word).unwrap());
    };
    fill("base");
    act(volumes, &id, snapshot("base"), "base").await.unwrap();
    // Kills are spread over the time that the act takes here, and a little longer.
    let begun = Instant::now();
    assert!(actor(&world, &restore("base"), "undisturbed").wait().unwrap().success());
    let step = begun.elapsed() / 16;
    let mut unfinished = 0;
    for round in 0..20 {
        let after = step * round;
        let (name, by) = (format!("s{round}"), format!("round {round}"));
        fill(&name);
        unfinished += usize::from(!killed_after(&world, &snapshot(&name), &by, after));
        act(volumes, &id, snapshot(&name), &by).await.unwrap();
        let kept = world.pool().join("snapshots/1.demo.data").join(&name);
        assert_eq!(says(&kept), name);

        let by = format!("restore {round}");
        unfinished += usize::from(!killed_after(&world, &restore("base"), &by, after));
        let word = says(&path);
        assert!(word == name || word == "base", "{word}");
        act(volumes, &id, restore("base"), &by).await.unwrap();
        assert_eq!(says(&path), "base");
        act(volumes, &id, Action::DropSnapshot { name: name.parse().unwrap() }, &by).await.unwrap();
    }
    assert!(unfinished >= 6, "only {unfinished} were killed before they were done");

    // Who never asks again leaves nothing behind either.
    for (n, action) in [snapshot("half"), restore("base"), restore("base")].iter().enumerate() {
        killed_after(&world, action, &format!("never {n}"), step * 10);
    }
    act(volumes, &id, Action::DropSnapshot { name: "half".parse().unwrap() }, "end").await.unwrap();
    volumes.ensure(&id, &json!({ "size": "32MiB" })).await.unwrap();
    act(volumes, &id, snapshot("end"), "end").await.unwrap();
    act(volumes, &id, Action::DropSnapshot { name: "end".parse().unwrap() }, "end").await.unwrap();
    let left = subvolumes(&world);
    assert_eq!(left.lines().count(), 2, "the volume and one snapshot: {left}");
    world.volumes.delete(&id).await.unwrap();
    world.assert_clean();
}
