//! Machines that are virtual machines: under QEMU in software, with guests of our own.

use std::fs;
use std::time::{Duration, Instant};

use rhizome_guest::{CMDLINE, PvhEnd, linux, pvh};
use rhizome_model::{Action, Code, Done, Drift, Repair, ResourceId, WorkloadKind};
use rhizome_sal::Sal;
use serde_json::{Value, json};

use crate::crash::killed_after;
use crate::keep::{keep, kill_shim, link_of, pairs, run};
use crate::machine::limit;
use crate::world::{World, assert_code, id, processes};

/// A file that images are taken from.
fn put(world: &World, name: &str, bytes: &[u8]) -> String {
    let path = world.config.image_roots[0].join(name);
    fs::write(&path, bytes).unwrap();
    format!("file://{}", path.display())
}

/// A machine that prints a line and then does nothing, or ends: it is up in no time.
fn tiny(world: &World, end: PvhEnd) -> Value {
    let kernel = put(world, &format!("{end:?}"), &pvh("hello from pvh", end));
    json!({ "isolation": "vm", "memory": "32MiB", "boot": { "kernel": kernel, "ready": "started" } })
}

fn get(status: &Value, path: &str) -> String {
    rhizome_guest::get(status["address"].as_str().unwrap().parse().unwrap(), path).unwrap()
}

async fn log(world: &World, id: &ResourceId) -> String {
    world.act(id, Action::Logs { tail: 1000, follow: false }).await.unwrap().1
}

async fn until_logged(world: &World, id: &ResourceId, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let printed = log(world, id).await;
        if printed.contains(text) {
            return;
        }
        assert!(Instant::now() < deadline, "no '{text}' in {printed}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_guest_is_as_declared_keeps_its_disks_and_goes_without_a_trace() {
    let world = World::new().await;
    let Some(guest) = linux(&world.config.image_roots[0]) else { return };
    let kernel = put(&world, "vmlinuz", &fs::read(guest.kernel).unwrap());
    let (data, vm) = (id("1/demo/data"), id("1/demo/vm"));
    world.volumes.ensure(&data, &json!({ "size": "32MiB" })).await.unwrap();
    let image = put(&world, "root.raw", &[b"rooted".as_slice(), &[0; 1 << 20]].concat());
    let spec = json!({
        "isolation": "vm", "memory": "192MiB", "image": image, "disk": "8MiB",
        "boot": { "kernel": kernel, "initramfs": format!("file://{}", guest.initramfs.display()),
            "cmdline": CMDLINE },
        "disks": [{ "name": "extra", "size": "16MiB" }],
        "mounts": [{ "volume": "data", "path": "/data" }],
        "env": { "GREETING": "it's so" }, "ssh_keys": ["ssh-ed25519 AAAA me"],
    });
    let begin = Instant::now();
    let status = world.machines.ensure(&vm, &spec).await.unwrap().status;
    println!("the first boot took {:?}", begin.elapsed());
    assert_eq!(
        (&status["state"], &status["health"]["status"]),
        (&json!("running"), &json!("good"))
    );
    assert!(status["driver"].as_str().unwrap().starts_with("qemu "), "{status}");
    until_logged(&world, &vm, "guest ready vm").await;
    world.until(&vm, |s| s["disk_used"].as_u64().unwrap() > 0).await;
    let facts = get(&status, "/facts");
    for fact in ["hostname=vm", "mtu=1400", "mount=/data rw", "ssh=yes"] {
        assert!(facts.contains(fact), "no {fact} in {facts}");
    }
    assert!(facts.contains(&format!("address={}/64", status["address"].as_str().unwrap())));
    assert!(get(&status, "/env").contains("GREETING="));
    get(&status, "/cgi-bin/write?/data/kept=still%20here");
    assert_eq!(world.machines.ensure(&vm, &spec).await.unwrap().status["pid"], status["pid"]);
    assert_eq!(keep(&*world.machines, &vm, &spec).await, []);

    let process = fs::read_to_string(format!("/proc/{}/status", status["pid"])).unwrap();
    let rss = process.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    println!("hypervisor and guest of 192 MiB: {rss}");
    let root = world.root(&vm);
    assert_eq!(&fs::read(root.join("root.raw")).unwrap()[..6], b"rooted", "the image is its disk");
    assert_eq!(fs::metadata(root.join("root.raw")).unwrap().len(), 8 << 20, "and grown");
    assert_eq!(fs::metadata(root.join("extra.raw")).unwrap().len(), 16 << 20);
    let refused = world.act(&vm, Action::Exec { command: vec!["ls".into()] }).await;
    assert!(assert_code(refused, Code::BadRequest).to_string().contains("ssh_keys"));
    let mut other = tiny(&world, PvhEnd::Halt);
    other["mounts"] = spec["mounts"].clone();
    assert_code(world.machines.ensure(&id("1/demo/other"), &other).await, Code::Conflict);
    assert_code(world.volumes.ensure(&data, &json!({ "size": "16MiB" })).await, Code::BelowUse);

    let begin = Instant::now();
    let (stopped, _) = world.act(&vm, Action::Stop).await.unwrap();
    println!("a stop by the power button took {:?}", begin.elapsed());
    assert_eq!((&stopped["state"], &stopped["exit_code"]), (&json!("stopped"), &json!(0)));
    assert!(log(&world, &vm).await.contains("guest powers off"));

    let (started, _) = world.act(&vm, Action::Start).await.unwrap();
    assert_eq!(get(&started, "/files/data/kept"), "still%20here");

    // Its hypervisor has hold of a link that is gone, and so it needs another start.
    run("ip", &["link", "delete", &link_of(&world, &vm)]);
    assert_eq!(keep(&*world.machines, &vm, &spec).await, [(Drift::Network, Repair::Started)]);
    assert_eq!(get(&started, "/files/data/kept"), "still%20here");
    assert_eq!(keep(&*world.machines, &vm, &spec).await, []);
    world.machines.delete(&vm).await.unwrap();
    world.volumes.delete(&data).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn what_breaks_around_a_vm_is_put_right() {
    let world = World::new().await;
    let (vm, spec) = (id("1/demo/vm"), tiny(&world, PvhEnd::Halt));
    let first = world.machines.ensure(&vm, &spec).await.unwrap().status;
    until_logged(&world, &vm, "hello from pvh").await;
    assert_eq!(keep(&*world.machines, &vm, &spec).await, []);

    // Its hypervisor is killed: the shim starts it again.
    run("kill", &["-9", &first["pid"].to_string()]);
    let again = world.until(&vm, |s| s["restarts"] == 1 && s["state"] == "running").await;
    assert_eq!(again["last_exit"], "it was ended by signal 9 (exit status 137)");

    // It hangs: nobody but a look from outside sees that.
    run("kill", &["-STOP", &again["pid"].to_string()]);
    let status = world.status(&vm).await;
    let reason = status["health"]["reason"].as_str().unwrap();
    assert!(reason.contains("does not answer"), "{reason}");
    let kept = world.machines.keep(&vm, &spec).await.unwrap();
    assert_eq!(pairs(&kept), [(Drift::Hung, Repair::Waits)]);
    world.until(&vm, |s| s["state"] == "running" && s["pid"] != again["pid"]).await;

    // Whoever watched it died, and with it what it was told by.
    kill_shim(&world);
    let stale = world.config.state.join("run/machines").join(vm.file_name()).join("api.sock");
    assert!(stale.exists());
    assert_eq!(keep(&*world.machines, &vm, &spec).await, [(Drift::Lost, Repair::Waits)]);
    world.until(&vm, |s| s["state"] == "running").await;

    for (cause, args) in [("down", vec!["down"]), ("off the bridge", vec!["nomaster"])] {
        run("ip", &[vec!["link", "set", &link_of(&world, &vm)], args].concat());
        let drift = keep(&*world.machines, &vm, &spec).await;
        assert_eq!(drift, [(Drift::Network, Repair::Restored)], "{cause}");
    }

    // Whoever started it died before its link was admitted: the next one does that, and nothing else.
    let pid = world.status(&vm).await["pid"].clone();
    let unadmitted =
        world.config.state.join("run/machines").join(vm.file_name()).join("unadmitted");
    for next in ["ensure", "start", "keep"] {
        assert!(!unadmitted.exists(), "before {next}");
        fs::write(&unadmitted, "").unwrap();
        run("nft", &["flush", "set", "bridge", &world.mark(), "sources"]);
        match next {
            "ensure" => {
                let ensured = world.machines.ensure(&vm, &spec).await.unwrap();
                assert_eq!(ensured.done, Done::Unchanged);
            }
            "start" => drop(world.act(&vm, Action::Start).await.unwrap()),
            _ => {}
        }
        assert_eq!(unadmitted.exists(), next == "keep", "after {next}");
        assert_eq!(keep(&*world.machines, &vm, &spec).await, [], "after {next}");
        assert_eq!(world.status(&vm).await["pid"], pid, "after {next}");
    }
    world.machines.delete(&vm).await.unwrap();
    world.assert_clean();
}

#[tokio::test]
async fn a_vm_is_limited_changes_in_place_and_is_killed_when_it_is_deaf() {
    let world = World::new().await;
    let (vm, mut spec) = (id("1/demo/vm"), tiny(&world, PvhEnd::Halt));
    spec["cpu"] = json!(0.5);
    spec["disks"] = json!([{ "name": "d", "size": "8MiB" }]);
    let first = world.machines.ensure(&vm, &spec).await.unwrap().status;
    let memory = || limit(&world, &vm, "memory.limit_in_bytes", "memory.max");
    let cpu = || limit(&world, &vm, "cpu.cfs_quota_us", "cpu.max");
    assert_eq!((memory(), &cpu()[..5]), (((32 + 128) << 20).to_string(), "50000"));

    spec["cpu"] = json!(0.75);
    let same = world.machines.ensure(&vm, &spec).await.unwrap().status;
    assert_eq!((&same["pid"], &cpu()[..5]), (&first["pid"], "75000"));

    // It hears no power button, so this takes as long as it may.
    let begin = Instant::now();
    spec["memory"] = json!("40MiB");
    spec["disks"][0]["size"] = json!("16MiB");
    let changed = world.machines.ensure(&vm, &spec).await.unwrap().status;
    assert!((20..30).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    assert_ne!(changed["pid"], first["pid"]);
    assert_eq!(memory(), ((40 + 128) << 20).to_string());
    let disk = world.root(&vm).join("d.raw");
    assert_eq!(fs::metadata(disk).unwrap().len(), 16 << 20);
    spec["disks"][0]["size"] = json!("8MiB");
    assert_code(world.machines.ensure(&vm, &spec).await, Code::BelowUse);
    assert_eq!(world.status(&vm).await["pid"], changed["pid"], "a refusal changes nothing");

    // The node goes down while it waits to be started again, and comes back with it.
    run("kill", &["-9", &changed["pid"].to_string()]);
    world.until(&vm, |s| s["next_start_at"].is_i64()).await;
    world.sal.down().await.unwrap();
    let sal = Sal::up(world.config.clone()).await.unwrap();
    spec["disks"][0]["size"] = json!("16MiB");
    let ensured = sal.workload(WorkloadKind::Machine).ensure(&vm, &spec).await.unwrap();
    assert_eq!((&ensured.status["state"], ensured.done), (&json!("running"), Done::Restored));
    run("kill", &["-9", &ensured.status["pid"].to_string()]);
}

#[tokio::test]
async fn what_a_guest_comes_to_counts_by_its_policy() {
    let world = World::new().await;
    let vm = id("1/demo/vm");
    for (end, state, reason) in [
        (PvhEnd::PowerOff, "exited", None),
        (PvhEnd::Reset, "backing_off", Some("the guest reset itself")),
    ] {
        let mut spec = tiny(&world, end);
        spec["restart"] = json!("on_failure");
        world.machines.ensure(&vm, &spec).await.unwrap();
        let status = world.until(&vm, |s| s["state"] == state).await;
        assert_eq!(status["last_exit"].as_str(), reason, "{status}");
        world.machines.delete(&vm).await.unwrap();
    }
    world.assert_clean();
}

#[tokio::test]
async fn what_cannot_boot_says_why_and_leaves_nothing() {
    let world = World::new().await;
    let vm = id("1/demo/vm");
    let good = tiny(&world, PvhEnd::Halt);
    let rubbish = put(&world, "rubbish", &[7; 4096]);
    let with = |field: &str, value: Value| {
        let mut spec = good.clone();
        spec["boot"][field] = value;
        spec
    };
    let mut large = good.clone();
    large["memory"] = json!("8000GiB");
    let mut cut = good.clone();
    cut["image"] = json!(put(&world, "disk.raw", &[1; 2 << 20]));
    cut["disk"] = json!("1MiB");
    let mut deaf = with("ready", json!("address"));
    deaf["boot"]["timeout"] = json!(1);
    let mut short = tiny(&world, PvhEnd::PowerOff);
    short["boot"]["ready"] = json!("address");
    for (spec, code, says) in [
        (with("kernel", json!("file:///nowhere")), Code::ImageNotFound, "/nowhere"),
        (with("kernel", json!(rubbish)), Code::ImageCorrupt, "no kernel"),
        (with("initramfs", json!(rubbish)), Code::ImageCorrupt, "cpio"),
        (large, Code::InsufficientCapacity, "ask for less"),
        (cut, Code::InvalidSpec, "smaller than its image"),
        (deaf, Code::StartFailed, "did not answer within"),
        (short, Code::StartFailed, "powered off"),
    ] {
        let error = assert_code(world.machines.ensure(&vm, &spec).await, code);
        assert!(error.to_string().contains(says), "{error}");
        if code == Code::StartFailed {
            assert!(error.detail().unwrap().contains("hello from pvh"), "{:?}", error.detail());
        }
        world.assert_clean();
    }
}

#[tokio::test]
async fn a_start_whose_helper_or_hypervisor_is_killed_fails_and_leaves_nothing() {
    let world = World::new().await;
    let (vm, mut spec) = (id("1/demo/vm"), tiny(&world, PvhEnd::Halt));
    // It never answers, so there is time.
    spec["boot"]["ready"] = json!("address");
    let run_folder = world.config.state.join("run").to_string_lossy().into_owned();
    for (victim, says) in [("helper", "did not say why"), ("hypervisor", "signal 9")] {
        let (machines, of, with) = (world.machines.clone(), vm.clone(), spec.clone());
        let making = tokio::spawn(async move { machines.ensure(&of, &with).await });
        let log_file = world.config.state.join("logs/1.demo.vm.log");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !fs::read_to_string(&log_file).unwrap_or_default().contains("hello from pvh") {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The helper is a copy of its shim.
        let shims = processes(&run_folder).into_iter().filter(|p| p.contains("machine-shim"));
        let shims: Vec<_> = shims.map(|p| p.split(' ').next().unwrap().to_owned()).collect();
        let child = |of: &str| fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
        let child = |of: &str| child(of).unwrap().trim().to_owned();
        let helper = shims.iter().find(|shim| !shims.contains(&child(shim))).unwrap();
        let hypervisor = child(helper);
        run("kill", &["-9", if victim == "helper" { helper } else { &hypervisor }]);
        let error = assert_code(making.await.unwrap(), Code::StartFailed);
        assert!(error.to_string().contains(says), "{victim}: {error}");
        assert!(!std::path::Path::new("/proc").join(&hypervisor).exists(), "{victim}");
        world.assert_clean();
    }
}

#[tokio::test]
async fn whoever_is_killed_while_making_or_deleting_a_vm_is_made_up_for() {
    let world = World::new().await;
    let (vm, mut spec) = (id("1/demo/vm"), tiny(&world, PvhEnd::Halt));
    spec["disks"] = json!([{ "name": "d", "size": "8MiB" }]);
    let mut after = Duration::from_millis(10);
    let mut unfinished = 0;
    for round in 0..8 {
        unfinished += u32::from(!killed_after(&world, "1/demo/vm", &spec, false, after));
        if round % 2 == 0 {
            let status = world.machines.ensure(&vm, &spec).await.unwrap().status;
            assert_eq!(status["state"], "running");
            assert_eq!(keep(&*world.machines, &vm, &spec).await, [], "after {after:?}");
            run("kill", &["-9", &status["pid"].to_string()]);
            killed_after(&world, "1/demo/vm", &spec, true, after);
        }
        world.machines.delete(&vm).await.unwrap();
        world.assert_clean();
        after += Duration::from_millis(15);
    }
    assert!(unfinished >= 3, "only {unfinished} were killed before they were done");
}
