//! Machines: what they can do, what they cannot, and how they change.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rhizome_model::{Action, Code, ResourceId};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::world::{World, assert_code, collect, hierarchies, id};

fn pid(status: &Value) -> i64 {
    status["pid"].as_i64().unwrap()
}

/// A file of the machine's group, wherever its controller is.
pub fn limit(world: &World, id: &ResourceId, v1: &str, v2: &str) -> String {
    let group = |h: PathBuf| h.join(world.mark()).join(id.file_name());
    let files =
        hierarchies().into_iter().flat_map(|h| [group(h.clone()).join(v1), group(h).join(v2)]);
    let text = files.filter_map(|f| fs::read_to_string(f).ok()).next();
    text.unwrap_or_else(|| panic!("neither {v1} nor {v2}")).trim().to_owned()
}

#[tokio::test]
async fn a_machine_runs_is_seen_and_goes_without_a_trace() {
    let world = World::new().await;
    let web = id("1/demo/web");
    let spec = json!({ "image": world.image });
    let begin = Instant::now();
    let status = world.machines.ensure(&web, &spec).await.unwrap().status;
    println!("first machine, image imported: {:?}", begin.elapsed());
    assert_eq!(status["state"], "running");
    assert_eq!(status["health"]["status"], "good");
    assert_eq!(status["hostname"], "web");
    let again = world.machines.ensure(&web, &spec).await.unwrap().status;
    assert_eq!(pid(&again), pid(&status), "ensure of what is so changes nothing");
    assert_eq!(world.machines.list().await.unwrap(), std::slice::from_ref(&web));
    assert_eq!(world.exec(&web, "hostname; id -u; pwd").await, (0, "web\n0\n/\n".into()));

    let shims = crate::world::processes("machine-shim");
    let mine = shims.iter().find(|p| p.contains(&*world.config.state.to_string_lossy())).unwrap();
    let rss =
        fs::read_to_string(format!("/proc/{}/status", mine.split(' ').next().unwrap())).unwrap();
    println!(
        "shim: {}",
        rss.lines()
            .filter(|l| l.starts_with("VmRSS") || l.starts_with("RssAnon"))
            .collect::<Vec<_>>()
            .join(" ")
    );

    let begin = Instant::now();
    world.machines.delete(&web).await.unwrap();
    println!("delete: {:?}", begin.elapsed());
    world.machines.delete(&web).await.unwrap();
    world.assert_clean();
    assert!(world.machines.list().await.unwrap().is_empty());
    assert_eq!(world.machines.observe(&web).await.unwrap(), None);
}

#[tokio::test]
async fn two_machines_talk_over_ipv6() {
    let world = World::new().await;
    let (web, client) = (id("1/demo/web"), id("1/demo/client"));
    world.volumes.ensure(&id("1/demo/page"), &json!({ "size": "8MiB" })).await.unwrap();
    fs::write(world.pool().join("volumes/1.demo.page/index.html"), "hello over ipv6\n").unwrap();
    let mut spec = world.script("exec httpd -f -h /www");
    spec["mounts"] = json!([{ "volume": "page", "path": "/www", "readonly": true }]);
    let status = world.machines.ensure(&web, &spec).await.unwrap().status;
    let address = status["address"].as_str().unwrap();
    let mut fetch = world.script(&format!(
        "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - 'http://[{address}]/' && exit 0; sleep 0.2; done; exit 1"
    ));
    fetch["restart"] = json!("never");
    world.machines.ensure(&client, &fetch).await.unwrap();
    let (answer, _) = world.act(&client, Action::Wait).await.unwrap();
    assert_eq!(answer, json!({ "exit_code": 0, "output": "hello over ipv6\n" }));
    assert_eq!(world.status(&client).await["state"], "exited");

    let (code, _) = world.exec(&web, "echo x > /www/y").await;
    assert_ne!(code, 0, "a read-only mount cannot be written");
    // The node reaches it too, by way of the bridge.
    let stream = std::net::TcpStream::connect_timeout(
        &format!("[{address}]:80").parse().unwrap(),
        Duration::from_secs(5),
    );
    stream.unwrap();
}

#[tokio::test]
async fn limits_are_set_and_change_in_place() {
    let world = World::new().await;
    let web = id("1/demo/web");
    let mut spec = json!({
        "image": world.image, "cpu": 0.5, "memory": "64MiB", "pids": 20, "disk": "32MiB",
    });
    let status = world.machines.ensure(&web, &spec).await.unwrap().status;
    let memory = || limit(&world, &web, "memory.limit_in_bytes", "memory.max");
    let pids = || limit(&world, &web, "pids.max", "pids.max");
    let cpu = || limit(&world, &web, "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(memory(), (64 << 20).to_string());
    assert_eq!(pids(), "20");
    assert!(cpu().starts_with("50000"), "{}", cpu());
    let (code, _) = world.exec(&web, "dd if=/dev/zero of=/root/big bs=1M count=64").await;
    assert_ne!(code, 0, "the disk is limited");
    world.exec(&web, "rm /root/big; echo kept > /root/a").await;

    spec["cpu"] = json!(1.5);
    spec["memory"] = json!("128MiB");
    spec["pids"] = json!(40);
    spec["disk"] = json!("128MiB");
    spec["restart"] = json!("never");
    let changed = world.machines.ensure(&web, &spec).await.unwrap().status;
    assert_eq!(pid(&changed), pid(&status), "limits change in place");
    assert_eq!(memory(), (128 << 20).to_string());
    assert_eq!(pids(), "40");
    assert!(cpu().starts_with("150000"), "{}", cpu());
    let (code, text) =
        world.exec(&web, "dd if=/dev/zero of=/root/big bs=1M count=64 && sync").await;
    assert_eq!(code, 0, "{text}");
    spec["disk"] = json!("16MiB");
    assert_code(world.machines.ensure(&web, &spec).await, Code::BelowUse);
    spec["disk"] = json!("128MiB");

    // The new policy holds for the next end: it rests.
    world.exec(&web, "kill -TERM 1").await;
    world.until(&web, |s| s["state"] == "exited").await;

    let mut bad = spec.clone();
    bad["image"] = json!(format!("{}.not-there", world.image));
    let (before, _) = world.act(&web, Action::Start).await.unwrap();
    assert_code(world.machines.ensure(&web, &bad).await, Code::ImageNotFound);
    assert_eq!(pid(&world.status(&web).await), pid(&before), "the old one stays");

    spec["env"] = json!({ "A": "b" });
    let replaced = world.machines.ensure(&web, &spec).await.unwrap().status;
    assert_ne!(pid(&replaced), pid(&status));
    assert_eq!(world.exec(&web, "echo $A; ls /root").await, (0, "b\n".into()), "nothing is kept");
}

#[tokio::test]
async fn a_memory_hog_is_killed_and_started_again_after_pauses() {
    let world = World::new().await;
    let hog = id("1/demo/hog");
    let mut spec = world.script("echo start; exec tail /dev/zero");
    spec["memory"] = json!("16MiB");
    world.machines.ensure(&hog, &spec).await.unwrap();
    let status = world.until(&hog, |s| s["state"] == "backing_off").await;
    let first = Instant::now();
    assert_eq!(status["exit_code"], 137);
    let reason = status["health"]["reason"].as_str().unwrap();
    assert!(reason.contains("more memory than it may"), "{reason}");
    world.until(&hog, |s| s["restarts"] == 1 && s["state"] == "backing_off").await;
    let second = Instant::now();
    assert!(second - first >= Duration::from_millis(900), "{:?}", second - first);
    world.until(&hog, |s| s["restarts"] == 2).await;
    assert!(second.elapsed() >= Duration::from_millis(1800), "{:?}", second.elapsed());
    world.machines.delete(&hog).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn an_end_is_what_the_policy_makes_of_it() {
    let world = World::new().await;
    for (name, policy, script, state, code) in [
        ("a", "on_failure", "exit 0", "exited", 0),
        ("b", "on_failure", "exit 3", "backing_off", 3),
        ("c", "never", "exit 3", "exited", 3),
        ("d", "always", "exit 0", "backing_off", 0),
        ("e", "never", "kill -9 $$; sleep 1; exit 9", "exited", 9),
    ] {
        let machine = id(&format!("1/demo/{name}"));
        let mut spec = world.script(script);
        spec["restart"] = json!(policy);
        let status = world.machines.ensure(&machine, &spec).await.unwrap().status;
        assert!(status["state"].is_string());
        let status = world.until(&machine, |s| s["state"] == state).await;
        assert_eq!(status["exit_code"], code, "{name}");
        assert_eq!(status["health"]["status"] == "good", code == 0 && state == "exited", "{name}");
    }
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let world = World::new().await;
    let web = id("1/demo/web");
    let mut spec = world.script("");
    spec["command"] = json!(["/bin/not-there", "x"]);
    let error = assert_code(world.machines.ensure(&web, &spec).await, Code::StartFailed);
    assert!(error.to_string().contains("no such file or directory"), "{error}");
    assert!(error.to_string().contains("/bin/not-there x"), "{error}");
    world.assert_clean();

    let mut spec = world.script("");
    spec["mounts"] = json!([{ "volume": "data", "path": "/data" }]);
    let error = assert_code(world.machines.ensure(&web, &spec).await, Code::NotFound);
    assert!(error.to_string().contains("1/demo/data"), "{error}");
    let mut spec = world.script("");
    spec["disk"] = json!("100GiB");
    assert_code(world.machines.ensure(&web, &spec).await, Code::PoolFull);
    world.assert_clean();
}

#[tokio::test]
async fn a_machine_is_kept_in() {
    let world = World::new().await;
    let web = id("1/demo/web");
    world.machines.ensure(&web, &world.script("sleep 1000")).await.unwrap();
    let status = world.status(&web).await;
    let caps = fs::read_to_string(format!("/proc/{}/status", pid(&status))).unwrap();
    assert!(caps.contains("NoNewPrivs:\t1") && caps.contains("Seccomp:\t2"), "{caps}");
    for (what, script) in [
        ("another address", "ip -6 addr add 400::5/64 dev eth0"),
        ("a raw socket", "ping -c 1 ::1"),
        ("a mount", "mount -t tmpfs x /tmp"),
        ("a device", "mknod /tmp/x b 7 0"),
        ("the kernel's settings", "echo 1 > /proc/sys/kernel/sysrq"),
        ("other groups", "ls /sys/fs/cgroup/memory"),
        ("the clock", "date -s 2000-01-01; [ $(date +%Y) = 2000 ]"),
    ] {
        let (code, text) = world.exec(&web, script).await;
        assert_ne!(code, 0, "{what}: {text}");
    }
    let (code, text) = btrfs_inside(&world, &web, "subvolume create /root/sub").await;
    assert!(
        code != 0 && text.contains("Operation not permitted"),
        "it would have no quota: {text}"
    );
    let (code, text) = btrfs_inside(&world, &web, "subvolume snapshot / /root/sub").await;
    assert!(
        code != 0 && text.contains("Operation not permitted"),
        "it would have no quota: {text}"
    );
    let (_, processes) = world.exec(&web, "ps -o args").await;
    assert!(!processes.contains("shim"), "{processes}");
}

/// Runs the node's own `btrfs` in the machine, brought along with its libraries.
async fn btrfs_inside(world: &World, id: &ResourceId, args: &str) -> (i64, String) {
    let folder = world.root(id).join("btrfs");
    fs::create_dir_all(&folder).unwrap();
    let output = std::process::Command::new("ldd").arg("/usr/bin/btrfs").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/usr/bin/btrfs"]) {
        let name = PathBuf::from(file).file_name().unwrap().to_owned();
        fs::copy(file, folder.join(name)).unwrap();
    }
    let loader = text.split_whitespace().find(|w| w.contains("/ld-linux")).unwrap();
    let loader = loader.rsplit('/').next().unwrap();
    world.exec(id, &format!("/btrfs/{loader} --library-path /btrfs /btrfs/btrfs {args} 2>&1")).await
}

#[tokio::test]
async fn exec_streams_gives_the_status_and_ends_when_it_is_cancelled() {
    let world = World::new().await;
    let web = id("1/demo/web");
    world.machines.ensure(&web, &world.script("sleep 1000")).await.unwrap();
    assert_eq!(world.exec(&web, "echo out; echo err >&2; exit 7").await.0, 7);
    let command = |script: &str| Action::Exec {
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
    };

    let (sender, mut receiver) = mpsc::channel(4);
    let cancel = CancellationToken::new();
    let (machines, token, action) = (
        world.machines.clone(),
        cancel.clone(),
        command("echo begin; sleep 777 & sleep 778; echo never"),
    );
    let target = web.clone();
    let running =
        tokio::spawn(async move { machines.act(&target, &action, "test", sender, token).await });
    let first = receiver.recv().await.unwrap();
    assert_eq!(first, rhizome_sal::Chunk::Stdout(b"begin\n".into()), "it streams while it runs");
    cancel.cancel();
    let rest = tokio::spawn(collect(receiver));
    assert_code(running.await.unwrap(), Code::Cancelled);
    assert_eq!(rest.await.unwrap(), "");
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let (_, processes) = world.exec(&web, "ps -o args").await;
        if !processes.contains("sleep 77") {
            break;
        }
        assert!(Instant::now() < deadline, "{processes}");
    }
    assert_eq!(world.status(&web).await["state"], "running");
    assert_code(world.act(&id("1/demo/no"), command("x")).await, Code::NotFound);
}

#[tokio::test]
async fn stop_stays_start_and_restart_begin_again() {
    let world = World::new().await;
    let web = id("1/demo/web");
    let spec = json!({ "image": world.image });
    let status = world.machines.ensure(&web, &spec).await.unwrap().status;
    world.exec(&web, "echo kept > /root/a").await;
    let begin = Instant::now();
    let (stopped, _) = world.act(&web, Action::Stop).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["exit_code"], 0, "it was asked first");
    let ensured = world.machines.ensure(&web, &spec).await.unwrap().status;
    assert_eq!(ensured["state"], "stopped", "who was stopped on request stays so");
    assert_code(
        world.act(&web, Action::Exec { command: vec!["true".into()] }).await,
        Code::Conflict,
    );

    let (started, _) = world.act(&web, Action::Start).await.unwrap();
    assert_eq!(started["state"], "running");
    let (same, _) = world.act(&web, Action::Start).await.unwrap();
    assert_eq!(pid(&same), pid(&started));
    let (restarted, _) = world.act(&web, Action::Restart).await.unwrap();
    assert_ne!(pid(&restarted), pid(&started));
    assert_ne!(pid(&restarted), pid(&status));
    assert_eq!(world.exec(&web, "cat /root/a").await, (0, "kept\n".into()));
}
