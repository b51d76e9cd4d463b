//! kill -9 of anything at any time; then ensure or delete again, and look at the system itself.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rhizome_model::{Bytes, KeyId, WorkloadKind};
use rhizome_sal::{NodeConfig, Pool, Sal};
use serde_json::{Value, json};

use crate::world::{SHIM, World, id, processes};

const CHILD: &str = "RHIZOME_SAL_TEST_CHILD";

/// Not a test of its own: the process that is killed. It does what it is told by its environment.
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
        image_roots: vec![text("images").into()],
    };
    let sal = Sal::open(config).await.unwrap();
    let workload = sal.workload(text("kind").parse().unwrap());
    let id = text("id").parse().unwrap();
    if told["delete"] == true {
        workload.delete(&id).await.unwrap();
    } else {
        workload.ensure(&id, &told["spec"]).await.unwrap();
    }
}

/// Runs ensure or delete in a process of its own and kills it after a while. Whether it was done.
pub fn killed_after(
    world: &World,
    name: &str,
    spec: &Value,
    delete: bool,
    after: Duration,
) -> bool {
    kind_killed_after(world, WorkloadKind::Machine, name, spec, delete, after)
}

/// The same for any kind.
pub fn kind_killed_after(
    world: &World,
    kind: WorkloadKind,
    name: &str,
    spec: &Value,
    delete: bool,
    after: Duration,
) -> bool {
    let mut child = child(world, kind, name, spec, delete)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    let done = child.try_wait().unwrap().is_some();
    let _ = child.kill();
    child.wait().unwrap();
    done
}

/// A process of its own that does one thing.
pub fn child(world: &World, kind: WorkloadKind, name: &str, spec: &Value, delete: bool) -> Command {
    let key: KeyId = world.config.key;
    let told = json!({
        "key": key, "address": world.config.address, "state": world.config.state,
        "images": world.config.image_roots[0], "kind": kind, "id": name, "spec": spec, "delete": delete,
    });
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "crash::child_process_that_is_killed"]).env(CHILD, told.to_string());
    child
}

/// That there is one machine and one only, in everything that the system shows.
fn assert_one(world: &World) {
    let traces = world.traces();
    let count = |what: &str| traces.iter().filter(|t| t.starts_with(what)).count();
    for what in ["machines ", "run ", "runtime ", "netns ", "link ", "shim's cgroup "] {
        assert_eq!(count(what), 1, "{what}: {traces:#?}");
    }
    let shims = processes(&world.config.state.join("run").to_string_lossy());
    let shims: Vec<_> = shims.iter().filter(|p| p.contains("machine-shim")).collect();
    assert_eq!(shims.len(), 1, "{shims:#?}");
    // The runtime becomes the program, which forks before it executes another: both take a moment.
    let deadline = Instant::now() + Duration::from_secs(5);
    while count_programs(world) != 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(count_programs(world), 1);
}

fn count_programs(world: &World) -> usize {
    processes(&format!("sleep 31415; : {}", world.mark())).len()
}

/// A program that its command line tells from that of other tests.
fn marked(world: &World) -> Value {
    world.script(&format!("sleep 31415; : {}", world.mark()))
}

#[tokio::test]
async fn ensure_after_a_killed_ensure_ends_in_one_machine() {
    let world = World::new().await;
    let spec = marked(&world);
    let (mut unfinished, mut after) = (0, Duration::from_millis(2));
    for round in 0..24 {
        let done = killed_after(&world, "1/demo/m", &spec, false, after);
        unfinished += usize::from(!done);
        let machine = id("1/demo/m");
        if round % 3 == 2 {
            world.machines.delete(&machine).await.unwrap();
            world.assert_clean();
        } else {
            world.machines.ensure(&machine, &spec).await.unwrap();
            assert_one(&world);
            if round % 3 == 1 {
                world.machines.delete(&machine).await.unwrap();
            }
        }
        after += Duration::from_millis(2);
    }
    assert!(unfinished >= 6, "only {unfinished} were killed before they were done");
}

#[tokio::test]
async fn delete_after_a_killed_delete_leaves_nothing() {
    let world = World::new().await;
    let (spec, machine) = (marked(&world), id("1/demo/m"));
    let mut after = Duration::from_millis(4);
    for round in 0..10 {
        world.machines.ensure(&machine, &spec).await.unwrap();
        killed_after(&world, "1/demo/m", &spec, true, after);
        // What is half deleted is still listed, so the reconciler finds it.
        if !world.traces().is_empty() {
            assert_eq!(world.machines.list().await.unwrap(), std::slice::from_ref(&machine));
        }
        if round % 3 == 0 {
            world.machines.ensure(&machine, &spec).await.unwrap();
            assert_one(&world);
        }
        world.machines.delete(&machine).await.unwrap();
        world.assert_clean();
        after += Duration::from_millis(2);
    }
}

#[tokio::test]
async fn a_killed_shim_is_replaced_and_so_is_a_killed_program() {
    let world = World::new().await;
    let (spec, machine) = (marked(&world), id("1/demo/m"));
    let status = world.machines.ensure(&machine, &spec).await.unwrap().status;
    fs::write(world.root(&machine).join("root/kept"), "").unwrap();
    let shim = processes(&world.config.state.join("run").to_string_lossy());
    let shim = shim.iter().find(|p| p.contains("machine-shim")).unwrap();
    let kill =
        |pid: &str| assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    kill(shim.split(' ').next().unwrap());
    let lost = world.until(&machine, |s| s["state"] != "running").await;
    assert_eq!(lost["health"]["status"], "failing");
    let again = world.machines.ensure(&machine, &spec).await.unwrap().status;
    assert_ne!(again["pid"], status["pid"]);
    assert_eq!(again["restarts"], 1);
    assert!(world.root(&machine).join("root/kept").exists(), "the root file system is kept");
    assert_one(&world);

    kill(&again["pid"].to_string());
    let restarted = world.until(&machine, |s| s["restarts"] == 2).await;
    assert_eq!(restarted["exit_code"], 137);
    world.until(&machine, |s| s["state"] == "running").await;
    assert_one(&world);
    world.machines.delete(&machine).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn many_at_once_are_what_they_should_be() {
    let world = World::new().await;
    let ids: Vec<_> = (0..10).map(|n| id(&format!("1/demo/m{n}"))).collect();
    let spec = world.script("sleep 1000");
    let begin = Instant::now();
    let mut all = Vec::new();
    // Each is asked for twice at the same time, as after a lease that ran out.
    for id in ids.iter().chain(&ids) {
        let (machines, id, spec) = (world.machines.clone(), id.clone(), spec.clone());
        all.push(tokio::spawn(async move { machines.ensure(&id, &spec).await.unwrap().status }));
    }
    let mut pids = std::collections::BTreeSet::new();
    for one in all {
        pids.insert(one.await.unwrap()["pid"].to_string());
    }
    println!("{} machines at once: {:?}", ids.len(), begin.elapsed());
    assert_eq!(pids.len(), ids.len());
    assert_eq!(world.machines.list().await.unwrap(), ids);
}
