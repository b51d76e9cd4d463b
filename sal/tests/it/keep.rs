//! What is not as it should be is seen, put right and told; what is not ours is left alone.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rhizome_model::{Action, Bytes, Drift, Drifted, Repair, ResourceId};
use rhizome_sal::{Kept, Workload};
use serde_json::{Value, json};

use crate::world::{World, hierarchies, id, processes};

pub fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).status().unwrap();
    assert!(done.success(), "{program} {args:?}");
}

pub fn pairs(kept: &Kept) -> Vec<(Drift, Repair)> {
    kept.drifted.iter().map(|d| (d.drift, d.action)).collect()
}

pub async fn keep(workload: &dyn Workload, id: &ResourceId, spec: &Value) -> Vec<(Drift, Repair)> {
    pairs(&workload.keep(id, spec).await.unwrap())
}

pub fn link_of(world: &World, id: &ResourceId) -> String {
    let wanted = format!("rhizome:{}:{id}", world.mark());
    let links = fs::read_dir("/sys/class/net").unwrap().flatten();
    let mut names = links.map(|l| l.file_name().into_string().unwrap());
    let alias =
        |l: &String| fs::read_to_string(format!("/sys/class/net/{l}/ifalias")).unwrap_or_default();
    names.find(|l| alias(l).trim() == wanted).unwrap()
}

/// Gives every quota group of the pool another limit.
fn limit_from_outside(world: &World, flags: &[&str]) {
    let pool = world.pool().to_string_lossy().into_owned();
    let shown = Command::new("btrfs").args(["qgroup", "show", &pool]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let groups = shown.lines().filter_map(|l| l.split_whitespace().next());
    for group in groups.filter(|g| g.starts_with(|c: char| c.is_ascii_digit())) {
        run("btrfs", &[&["qgroup", "limit"], flags, &["32M", group, &pool]].concat());
    }
}

/// Ends the shim of the only machine as the worst of days would.
pub fn kill_shim(world: &World) {
    let all = processes(&world.config.state.join("run").to_string_lossy());
    let shim = all.iter().find(|p| p.contains("machine-shim")).unwrap();
    run("kill", &["-9", shim.split(' ').next().unwrap()]);
    let deadline = Instant::now() + Duration::from_secs(5);
    let alive = || processes(&world.config.state.join("run").to_string_lossy());
    while alive().iter().any(|p| p.contains("machine-shim")) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[tokio::test]
async fn a_network_that_somebody_broke_is_put_right_while_the_machine_runs() {
    let world = World::new().await;
    let web = id("1/demo/web");
    let spec = world.script("sleep 1000");
    let status = world.machines.ensure(&web, &spec).await.unwrap().status;
    assert_eq!(keep(&*world.machines, &web, &spec).await, []);

    let (bridge, netns) = (world.mark(), format!("{}.{}", world.mark(), web.file_name()));
    let pid = status["pid"].to_string();
    let inside = ["-t", &pid, "-n", "ip"];
    let address = format!("{}/64", status["address"].as_str().unwrap());
    let link = link_of(&world, &web);
    let breaks: [(&str, Vec<&str>); 8] = [
        ("ip", vec!["link", "delete", &link]),
        ("ip", vec!["netns", "delete", &netns]),
        ("ip", vec!["link", "set", &link, "down"]),
        ("ip", vec!["link", "set", &link, "nomaster"]),
        ("nsenter", [&inside[..], &["address", "del", &address, "dev", "eth0"]].concat()),
        ("nsenter", [&inside[..], &["-6", "route", "del", "default"]].concat()),
        ("nsenter", [&inside[..], &["link", "delete", "eth0"]].concat()),
        ("ip", vec!["link", "delete", &bridge]),
    ];
    for (program, args) in breaks {
        run(program, &args);
        let kept = world.machines.keep(&web, &spec).await.unwrap();
        assert_eq!(pairs(&kept), [(Drift::Network, Repair::Restored)], "{args:?}");
        assert_eq!(kept.status["pid"], status["pid"], "{args:?}");
        assert_eq!(keep(&*world.machines, &web, &spec).await, [], "{args:?}");
        let gateway = gateway_of(&bridge);
        run("nsenter", &["-t", &pid, "-n", "ping", "-c1", "-W5", &gateway]);
    }
}

fn gateway_of(bridge: &str) -> String {
    let shown = Command::new("ip").args(["-6", "-j", "address", "show", bridge]).output().unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let addresses = shown[0]["addr_info"].as_array().unwrap();
    let global = addresses.iter().find(|a| a["scope"] == "global").unwrap();
    global["local"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_mount_and_a_limit_that_are_gone_come_back_while_the_machine_runs() {
    let world = World::new().await;
    let (data, web) = (id("1/demo/data"), id("1/demo/web"));
    let volume = json!({ "size": "64MiB" });
    let mut spec = world.script("sleep 1000");
    spec["mounts"] = json!([
        { "volume": "data", "path": "/data" },
        { "volume": "data", "path": "/seen", "readonly": true },
    ]);
    world.volumes.ensure(&data, &volume).await.unwrap();
    let status = world.machines.ensure(&web, &spec).await.unwrap().status;
    assert_eq!(world.exec(&web, "echo kept > /data/file").await.0, 0);
    assert_eq!(keep(&*world.machines, &web, &spec).await, []);

    for path in ["/data", "/seen"] {
        run("nsenter", &["-t", &status["pid"].to_string(), "-m", "/bin/umount", path]);
    }
    let kept = world.machines.keep(&web, &spec).await.unwrap();
    assert_eq!(pairs(&kept), [(Drift::Mount, Repair::Restored)]);
    assert_eq!(kept.status["pid"], status["pid"]);
    assert_eq!(world.exec(&web, "cat /data/file /seen/file").await, (0, "kept\nkept\n".into()));
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", status["pid"])).unwrap();
    for (path, access) in [("/data", "rw"), ("/seen", "ro")] {
        let mount = mounts.lines().find(|l| l.contains(&format!(" {path} "))).unwrap();
        assert!(mount.contains(&format!(" {access},nosuid,nodev")), "{mount}");
    }

    // A volume that is gone is made anew, and who runs gets the new one.
    let subvolume = world.pool().join("volumes").join(data.file_name());
    run("btrfs", &["-q", "subvolume", "delete", &subvolume.to_string_lossy()]);
    assert_eq!(keep(&*world.volumes, &data, &volume).await, [(Drift::Missing, Repair::Made)]);
    let kept = world.machines.keep(&web, &spec).await.unwrap();
    assert_eq!(pairs(&kept), [(Drift::Mount, Repair::Restored)]);
    assert_eq!(world.exec(&web, "ls /data; echo new > /data/file").await, (0, String::new()));
    assert_eq!(fs::read_to_string(subvolume.join("file")).unwrap(), "new\n");

    limit_from_outside(&world, &[]);
    limit_from_outside(&world, &["-e"]);
    for hierarchy in hierarchies() {
        // Where the controllers are, by the names of either version.
        let group = hierarchy.join(world.mark()).join(web.file_name());
        for (file, loose) in [
            ("pids.max", "max"),
            ("memory.memsw.limit_in_bytes", "-1"),
            ("memory.limit_in_bytes", "-1"),
            ("memory.max", "max"),
            ("cpu.cfs_quota_us", "-1"),
            ("cpu.max", "max"),
        ] {
            let file = group.join(file);
            if file.exists() {
                fs::write(file, loose).unwrap();
            }
        }
    }
    assert_eq!(keep(&*world.volumes, &data, &volume).await, [(Drift::Limit, Repair::Restored)]);
    let kept = world.machines.keep(&web, &spec).await.unwrap();
    assert_eq!(pairs(&kept), [(Drift::Limit, Repair::Restored)]);
    let cause = kept.drifted[0].cause.as_deref();
    assert_eq!(cause, Some("not limited as declared: cpu, memory, pids, disk"));
    assert_eq!(keep(&*world.volumes, &data, &volume).await, []);
    assert_eq!(keep(&*world.machines, &web, &spec).await, []);
}

#[tokio::test]
async fn a_pool_that_somebody_unmounted_is_mounted_before_anything_else_is_done() {
    let world = World::new().await;
    let (data, web) = (id("1/demo/data"), id("1/demo/web"));
    let volume = json!({ "size": "64MiB" });
    let mut spec = world.script("sleep 1000");
    spec["mounts"] = json!([{ "volume": "data", "path": "/data" }]);
    world.volumes.ensure(&data, &volume).await.unwrap();
    let status = world.machines.ensure(&web, &spec).await.unwrap().status;
    assert_eq!(world.exec(&web, "echo kept > /data/file").await.0, 0);

    run("umount", &["--lazy", &world.pool().to_string_lossy()]);
    let kept = world.machines.keep(&web, &spec).await.unwrap();
    assert_eq!(pairs(&kept), [(Drift::Mount, Repair::Restored)]);
    assert_eq!(kept.status["pid"], status["pid"]);
    assert_eq!(keep(&*world.volumes, &data, &volume).await, []);
    let file = world.pool().join("volumes").join(data.file_name()).join("file");
    assert_eq!(fs::read_to_string(file).unwrap(), "kept\n");
}

#[tokio::test]
async fn pauses_go_on_doubling_over_the_death_of_the_one_who_counts() {
    let world = World::new().await;
    let web = id("1/demo/web");
    let spec = world.script("exit 3");
    world.machines.ensure(&web, &spec).await.unwrap();
    // Not while it is only being started.
    let waits = |n: u64| move |s: &Value| s["restarts"] == n && s["next_start_at"].is_i64();
    let before = world.until(&web, waits(1)).await;
    kill_shim(&world);
    let kept = world.machines.keep(&web, &spec).await.unwrap();
    assert_eq!(pairs(&kept), [(Drift::Lost, Repair::Waits)]);
    assert!(kept.drifted[0].retry_in_ms.unwrap() <= 2_000, "{kept:?}");
    let late = |s: &Value| s["next_start_at"].as_i64().unwrap();
    assert!((late(&kept.status) - late(&before)).abs() < 100, "{before} {}", kept.status);
    assert_eq!(kept.status["restarts"], 1);
    assert_eq!(keep(&*world.machines, &web, &spec).await, []);
    world.until(&web, waits(2)).await;

    let untold = world.machines.untold(&web).await.unwrap().unwrap();
    let pauses: Vec<_> = untold.ends.iter().map(|(_, d)| d.retry_in_ms.unwrap()).collect();
    assert_eq!(pauses, [1_000, 2_000, 4_000]);
    let Drifted { drift, action, cause, .. } = untold.ends[0].1.clone();
    assert_eq!((drift, action), (Drift::Ended, Repair::Waits));
    assert_eq!(cause.as_deref(), Some("it ended with exit status 3"));
    untold.told().unwrap();
    assert!(world.machines.untold(&web).await.unwrap().is_none(), "nothing is told twice");
}

#[tokio::test]
async fn what_rests_is_left_alone() {
    let world = World::new().await;
    for (name, policy, script) in [("once", "never", "exit 3"), ("well", "on_failure", "exit 0")] {
        let machine = id(&format!("1/demo/{name}"));
        let mut spec = world.script(script);
        spec["restart"] = json!(policy);
        world.machines.ensure(&machine, &spec).await.unwrap();
        world.until(&machine, |s| s["state"] == "exited").await;
        let kept = world.machines.keep(&machine, &spec).await.unwrap();
        assert_eq!((pairs(&kept), &kept.status["state"]), (vec![], &json!("exited")), "{name}");
    }
    let (web, spec) = (id("1/demo/web"), world.script("sleep 1000"));
    world.machines.ensure(&web, &spec).await.unwrap();
    world.act(&web, Action::Stop).await.unwrap();
    assert_eq!(keep(&*world.machines, &web, &spec).await, []);
    assert_eq!(world.status(&web).await["state"], "stopped");

    // Asked to stop, and whoever was to see to it died with the shim: the wish counts.
    world.act(&web, Action::Start).await.unwrap();
    let orders = world.config.state.join("run/machines").join(web.file_name()).join("orders.json");
    let mut written: Value = serde_json::from_slice(&fs::read(&orders).unwrap()).unwrap();
    written["stop"] = json!("request");
    fs::write(&orders, written.to_string()).unwrap();
    kill_shim(&world);
    assert_eq!(keep(&*world.machines, &web, &spec).await, []);
    assert_eq!(world.status(&web).await["state"], "stopped");
}

#[tokio::test]
async fn the_end_of_a_machine_and_of_its_shim_are_noticed_at_once() {
    let world = World::new().await;
    let mut notices = world.machines.watch().unwrap().unwrap();
    let (web, spec) = (id("1/demo/web"), world.script("sleep 1000"));
    let status = world.machines.ensure(&web, &spec).await.unwrap().status;
    let mut heard = async |word: &str| {
        let begin = Instant::now();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(5), notices.recv());
            let notice = next.await.unwrap_or_else(|_| panic!("nothing {word}")).unwrap();
            assert_eq!(notice.id, web);
            if notice.what.contains(word) {
                return begin.elapsed();
            }
        }
    };
    run("kill", &["-9", &status["pid"].to_string()]);
    println!("an end was noticed after {:?}", heard("waits").await);
    heard("runs").await;
    kill_shim(&world);
    println!("a loss was noticed after {:?}", heard("lost").await);
    assert_eq!(keep(&*world.machines, &web, &spec).await, [(Drift::Lost, Repair::Waits)]);
}

#[tokio::test]
async fn what_is_not_ours_is_neither_listed_nor_touched() {
    let world = World::with_pool(Bytes::gib(1)).await;
    let web = id("1/demo/web");
    world.machines.ensure(&web, &world.script("sleep 1000")).await.unwrap();
    let mark = world.mark();
    let (other, link) = (format!("other-{mark}"), format!("o{}", &mark[2..]));
    let subvolume = world.pool().join("volumes/not-ours");
    run("ip", &["netns", "add", &other]);
    run("ip", &["link", "add", &link, "type", "veth", "peer", "name", &format!("{link}p")]);
    run("btrfs", &["-q", "subvolume", "create", &subvolume.to_string_lossy()]);
    let groups: Vec<_> = hierarchies().into_iter().map(|h| h.join(&other)).collect();
    let groups: Vec<_> = groups.into_iter().filter(|g| fs::create_dir(g).is_ok()).collect();
    assert!(!groups.is_empty());

    assert_eq!(world.machines.list().await.unwrap(), std::slice::from_ref(&web));
    assert!(world.volumes.list().await.unwrap().is_empty());
    world.machines.delete(&web).await.unwrap();
    let there = [
        Path::new("/run/netns").join(&other).exists(),
        Path::new("/sys/class/net").join(&link).exists(),
        subvolume.is_dir(),
        groups.iter().all(|g| g.is_dir()),
    ];
    run("ip", &["netns", "delete", &other]);
    run("ip", &["link", "delete", &link]);
    groups.iter().for_each(|g| fs::remove_dir(g).unwrap());
    assert_eq!(there, [true; 4]);
}
