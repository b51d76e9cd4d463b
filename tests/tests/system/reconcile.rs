//! What is desired stays so: ends, drift, orphans, and a node that is booted again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_tests::{System, eventually, processes_naming};
use serde_json::Value;

use crate::image::{busybox, counts_its_starts};

/// One machine and, if asked for, one line of its script per start.
fn machine(image: &str, name: &str, restart: &str, script: &str) -> String {
    format!(
        "machine(\"{name}\", #{{ image: \"{image}\", restart: \"{restart}\", memory: \"16MiB\",
             cpu: 0.05, command: [\"/bin/sh\", \"-c\", \"{script}\"] }});\n"
    )
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

fn kill_all(pids: impl IntoIterator<Item = u32>) {
    for pid in pids {
        // It may have ended just now.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
}

/// The next one looks at everything at once.
fn kill_supervisor(system: &System) {
    kill_all(system.pids("supervisor"));
}

/// The events of drift of one resource, the oldest first.
fn drifts(system: &System, deployment: &str, resource: &str) -> Vec<Value> {
    let printed = system.rhizome(&["events", deployment]).ok().stdout;
    let events = printed.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    events.filter(|e| e["event"] == "drift" && e["resource"] == resource).collect()
}

#[track_caller]
fn await_drift(system: &System, resource: &str, drift: &str, limit: u64) -> Value {
    let what = format!("{resource} drifted: {drift}");
    eventually(&what, Duration::from_secs(limit), || {
        drifts(system, "app", resource).into_iter().rfind(|e| e["drift"] == drift)
    })
}

fn status(system: &System, resource: &str) -> Value {
    let shown = system.rhizome(&["show", "app"]).ok().json();
    let resources = shown["tasks"][0]["resources"].as_array().unwrap().clone();
    resources.into_iter().find(|r| r["name"] == resource).unwrap()["status"].clone()
}

/// The beginning of every name in the kernel.
fn mark(system: &System) -> String {
    let file = std::fs::read(system.state.join("node-1/node.json")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    format!("rz{}", &file["key"].as_str().unwrap()[..8])
}

fn link_of(system: &System, id: &str) -> String {
    let alias = format!("rhizome:{}:{id}", mark(system));
    let links = std::fs::read_dir("/sys/class/net").unwrap().flatten();
    let mut links = links.map(|l| l.file_name().into_string().unwrap());
    let of = |l: &str| std::fs::read_to_string(format!("/sys/class/net/{l}/ifalias"));
    links.find(|l| of(l).unwrap_or_default().trim() == alias).unwrap()
}

#[test]
fn a_machine_that_keeps_ending_waits_longer_each_time_whoever_is_killed() {
    let mut system = System::start();
    let image = busybox(&system.state);
    let script = system.script("app.rhai", &machine(&image, "m", "always", "exit 3"));
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    // All of it before the first minute is over: nobody had to look.
    let ended = eventually("the third end is told", Duration::from_secs(30), || {
        Some(drifts(&system, "app", "m")).filter(|d| d.len() >= 3)
    });
    for (end, pause) in ended.iter().zip([1_000, 2_000, 4_000]) {
        assert_eq!(end["drift"], "ended", "{end}");
        assert_eq!(end["action"], "waits", "{end}");
        assert_eq!(end["cause"], "it ended with exit status 3", "{end}");
        assert_eq!(end["retry_in_ms"], pause, "{end}");
    }
    let at = |n: usize| ended[n]["at"].as_i64().unwrap();
    assert!(at(1) - at(0) >= 1_000 && at(2) - at(1) >= 2_000, "{ended:#?}");
    let shown = system.plain(&["show", "app"]).ok().stdout;
    assert!(shown.contains("; starts at ") && shown.contains("exit status 3"), "{shown}");
    assert!(status(&system, "m")["next_start_at"].is_i64());
    let line = system.plain(&["events", "app"]).ok().stdout;
    assert!(
        line.contains("machine m: ended (it ended with exit status 3): is started again in 4.0 s"),
        "{line}"
    );

    for role in
        ["dev", "node", "supervisor", "runner", "coord", "ledger", "redis-server", "machine-shim"]
    {
        kill_all(system.pids(role));
    }
    system.forget();
    eventually("all of it is dead", Duration::from_secs(20), || {
        system.pids("node").is_empty().then_some(())
    });
    system.up();
    let next = eventually("the fourth end is told", Duration::from_secs(40), || {
        drifts(&system, "app", "m").into_iter().find(|d| d["retry_in_ms"] == 8_000)
    });
    assert_eq!(next["cause"], "it ended with exit status 3");
    assert!(next["at"].as_i64().unwrap() - at(2) >= 4_000, "the pause was waited out");
    let all = drifts(&system, "app", "m");
    let ends = all.iter().filter(|d| d["drift"] == "ended").count();
    assert_eq!(ends, 4, "each end is told once: {all:#?}");
}

#[test]
fn what_was_stopped_or_may_rest_stays_so() {
    let system = System::start();
    let image = busybox(&system.state);
    let sources = [
        machine(&image, "stopped", "always", "sleep 100000"),
        machine(&image, "once", "never", "exit 3"),
        machine(&image, "well", "on_failure", "exit 0"),
        machine(&image, "other", "always", "sleep 100000"),
    ];
    let script = system.script("app.rhai", &sources.concat());
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    let end = await_drift(&system, "once", "ended", 20);
    assert_eq!((&end["action"], &end["retry_in_ms"]), (&"left".into(), &Value::Null), "{end}");
    system.rhizome(&["stop", "app/stopped"]).ok();

    // That the round came by is seen from what it did about another.
    run("ip", &["link", "delete", &link_of(&system, "1/app/other")]);
    kill_supervisor(&system);
    await_drift(&system, "other", "network", 60);
    eventually("the round is over", Duration::from_secs(20), || {
        let queues = system.rhizome(&["queues"]).ok().stdout;
        let queues: Value = serde_json::from_str(&queues).unwrap();
        let all = queues["queues"].as_array().unwrap();
        all.iter().all(|q| q["running"] == 0 && q["ready"] == 0).then_some(())
    });
    for (name, state) in [("stopped", "stopped"), ("once", "exited"), ("well", "exited")] {
        assert_eq!(status(&system, name)["state"], state, "{name}");
        let restarted = drifts(&system, "app", name).into_iter().any(|d| d["action"] != "left");
        assert!(!restarted, "{name}");
        let inside = system.kernel().containers.remove(&format!("1.app.{name}"));
        assert!(inside.is_none_or(|pids| pids.is_empty()), "{name}");
    }
    system.rhizome(&["start", "app/stopped"]).ok();
    assert_eq!(status(&system, "stopped")["state"], "running");
}

#[test]
fn what_somebody_takes_away_under_a_machine_comes_back() {
    let system = System::start();
    let script = counts_its_starts(&system);
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    let pid = status(&system, "m")["pid"].to_string();
    let netns = format!("{}.1.app.m", mark(&system));

    run("ip", &["netns", "delete", &netns]);
    run("nsenter", &["-t", &pid, "-m", "/bin/umount", "/data"]);
    // Nobody is killed for this one: the next minute's round finds it.
    let network = await_drift(&system, "m", "network", 90);
    assert_eq!(network["action"], "restored", "{network}");
    assert!(network["cause"].as_str().unwrap().contains(&netns), "{network}");
    let mount = await_drift(&system, "m", "mount", 10);
    assert_eq!(mount["action"], "restored", "{mount}");
    assert!(mount["cause"].as_str().unwrap().contains("/data"), "{mount}");
    let starts = || system.plain(&["exec", "app/m", "--", "/bin/cat", "/data/starts"]).stdout;
    assert_eq!(starts(), "start\n", "it was never stopped");
    assert_eq!(status(&system, "m")["pid"].to_string(), pid);
    system.kernel().machines();

    // The end of a shim is noticed at once.
    kill_all(system.pids("machine-shim"));
    let lost = await_drift(&system, "m", "lost", 20);
    assert_eq!(lost["action"], "started", "{lost}");
    eventually("it runs again", Duration::from_secs(20), || {
        (starts() == "start\nstart\n").then_some(())
    });

    let volume = system.state.join("node-1/pool/volumes/1.app.data");
    run("btrfs", &["-q", "subvolume", "delete", &volume.to_string_lossy()]);
    kill_supervisor(&system);
    assert_eq!(await_drift(&system, "data", "missing", 60)["action"], "made");
    eventually("the new volume is in the machine", Duration::from_secs(60), || {
        let wrote = system.plain(&["exec", "app/m", "--", "/bin/sh", "-c", "echo new > /data/new"]);
        (wrote.code == 0 && volume.join("new").exists()).then_some(())
    });
}

#[test]
fn what_is_gone_is_made_again_after_what_it_refers_to() {
    let system = System::start();
    let image = busybox(&system.state);
    let chain = |n: u32| {
        format!(
            "volume(\"v{n}\", #{{ size: \"8MiB\" }});
             machine(\"m{n}\", #{{ image: \"{image}\", memory: \"16MiB\", cpu: 0.05,
                 mounts: [#{{ volume: \"v{n}\", path: \"/data\" }}],
                 command: [\"/bin/sleep\", \"100000\"] }});\n"
        )
    };
    let source: String = (0..4).map(chain).collect();
    let script = system.script("app.rhai", &source);
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    let before = system.kernel();
    let pool = system.state.join("node-1/pool");
    for n in 0..4 {
        for path in [format!("machines/1.app.m{n}"), format!("volumes/1.app.v{n}")] {
            run("btrfs", &["-q", "subvolume", "delete", &pool.join(path).to_string_lossy()]);
        }
    }
    kill_supervisor(&system);
    for n in 0..4 {
        assert_eq!(await_drift(&system, &format!("v{n}"), "missing", 60)["action"], "made");
        assert_eq!(await_drift(&system, &format!("m{n}"), "missing", 60)["action"], "made");
    }
    assert_eq!(system.kernel().machines(), before.machines());
    // A machine whose volume is not there yet would have been refused.
    let events = system.rhizome(&["events", "app"]).ok().stdout;
    assert!(!events.contains("resource_failed"), "{events}");
}

#[test]
fn orphans_of_ours_go_and_what_is_not_ours_stays() {
    let system = System::start();
    let image = busybox(&system.state);
    let script = system.script("app.rhai", &machine(&image, "m", "always", "sleep 100000"));
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    let (mark, pool) = (mark(&system), system.state.join("node-1/pool"));
    let id = &mark[2..];

    let (ghost, foreign) = (format!("{mark}.1.app.ghost"), format!("other-{id}"));
    let (orphan_link, foreign_link) = (format!("g{id}"), format!("f{id}"));
    for name in [&ghost, &foreign] {
        run("ip", &["netns", "add", name]);
    }
    for link in [&orphan_link, &foreign_link] {
        run("ip", &["link", "add", link, "type", "veth", "peer", "name", &format!("{link}p")]);
    }
    let ours = ["volumes/1.app.lost", "volumes/1.gone.data", "machines/1.gone.m"];
    let theirs = ["volumes/not-ours", "machines/nobody", "elsewhere"];
    for path in ours.iter().chain(&theirs) {
        run("btrfs", &["-q", "subvolume", "create", &pool.join(path).to_string_lossy()]);
    }
    let group = first_hierarchy().join(&foreign);
    std::fs::create_dir(&group).unwrap();

    kill_supervisor(&system);
    let netns = |name: &str| Path::new("/run/netns").join(name).exists();
    eventually("the orphans are gone", Duration::from_secs(90), || {
        let gone = !netns(&ghost) && ours.iter().all(|path| !pool.join(path).exists());
        gone.then_some(())
    });
    let told = await_drift(&system, "ghost", "orphan", 10);
    assert_eq!(told["action"], "removed", "{told}");
    await_drift(&system, "lost", "orphan", 10);
    let link = |name: &str| Path::new("/sys/class/net").join(name).exists();
    let there = [
        netns(&foreign),
        link(&foreign_link),
        // Without our alias a link is not ours, whatever its name.
        link(&orphan_link),
        theirs.iter().all(|path| pool.join(path).is_dir()),
        group.is_dir(),
    ];
    run("ip", &["netns", "delete", &foreign]);
    run("ip", &["link", "delete", &foreign_link]);
    run("ip", &["link", "delete", &orphan_link]);
    std::fs::remove_dir(&group).unwrap();
    for path in theirs {
        run("btrfs", &["-q", "subvolume", "delete", &pool.join(path).to_string_lossy()]);
    }
    assert_eq!(there, [true; 5]);
    assert_eq!(system.kernel().machines().into_iter().collect::<Vec<_>>(), ["1.app.m"]);
}

/// Where machines are tracked: cgroup2, if it is mounted.
fn first_hierarchy() -> PathBuf {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of = |kind: &str| {
        let line = mounts.lines().find(|l| l.contains(&format!(" - {kind} ")))?;
        line.split(' ').nth(4).map(PathBuf::from)
    };
    of("cgroup2").or_else(|| of("cgroup")).unwrap()
}

/// How a process was started.
struct Started {
    args: Vec<String>,
}

impl Started {
    fn of(pid: u32) -> Self {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let args = line.split(|b| *b == 0).filter(|a| !a.is_empty());
        Self { args: args.map(|a| String::from_utf8(a.to_vec()).unwrap()).collect() }
    }

    fn again(&self) -> Child {
        let mut command = Command::new(&self.args[0]);
        // While its input is open its parent lives.
        command.args(&self.args[1..]).stdin(Stdio::piped()).stdout(Stdio::null());
        command.stderr(Stdio::null()).spawn().unwrap()
    }
}

fn redis_again(state: &Path) -> Child {
    let (node, socket) = (state.join("node-1"), state.join("node-1/redis.sock"));
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--unixsocket"]).arg(socket).args(["--unixsocketperm", "700"]);
    command.arg("--dir").arg(node).args(["--appendonly", "yes", "--appendfsync", "always"]);
    command.args(["--save", ""]).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn addresses(mark: &str, machines: &[&str]) -> BTreeMap<String, String> {
    let address = |name: &&str| {
        let netns = format!("{mark}.1.app.{name}");
        let args = ["-n", &netns, "-6", "-j", "address", "show", "dev", "eth0", "scope", "global"];
        let shown = Command::new("ip").args(args).output().unwrap().stdout;
        let shown: Value = serde_json::from_slice(&shown).unwrap_or_default();
        let address = shown.pointer("/0/addr_info/0/local").and_then(Value::as_str);
        ((*name).to_owned(), address.unwrap_or_default().to_owned())
    };
    machines.iter().map(address).collect()
}

/// All processes die, and the kernel forgets what it held; files stay.
fn power_off(system: &System) {
    let all = || processes_naming(&system.state);
    // Who would start others again goes first.
    for role in ["dev", "node", "supervisor"] {
        kill_all(system.pids(role));
    }
    eventually("everything is dead", Duration::from_secs(20), || {
        let kernel = system.kernel();
        kill_all(all().into_iter().map(|p| p.pid));
        kill_all(system.pids("redis-server"));
        kill_all(kernel.containers.values().flatten().copied());
        let alive = kernel.containers.values().any(|pids| !pids.is_empty());
        (all().is_empty() && !alive).then_some(())
    });
    let kernel = system.kernel();
    for link in &kernel.links {
        run("ip", &["link", "delete", &link_of(system, &link.replace('.', "/"))]);
    }
    for name in &kernel.namespaces {
        run("ip", &["netns", "delete", &format!("{}.{name}", mark(system))]);
    }
    for bridge in &kernel.bridges {
        run("ip", &["link", "delete", bridge]);
    }
    run("umount", &[&system.state.join("node-1/pool").to_string_lossy()]);
    remove_groups(Path::new("/sys/fs/cgroup"), &mark(system), 3);
    let left = system.kernel();
    assert!(left.is_empty(), "{left:#?}");
}

fn remove_groups(folder: &Path, mark: &str, depth: usize) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy() == mark {
            remove_tree(&entry.path());
        } else if depth > 0 {
            remove_groups(&entry.path(), mark, depth - 1);
        }
    }
}

fn remove_tree(group: &Path) {
    for entry in std::fs::read_dir(group).unwrap().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    eventually("a control group lets go", Duration::from_secs(5), || {
        std::fs::remove_dir(group).ok()
    });
}

#[test]
fn after_a_reboot_the_node_alone_brings_everything_back() {
    let mut system = System::start();
    let image = busybox(&system.state);
    let script = system.script(
        "app.rhai",
        &format!(
            "let data = volume(\"data\", #{{ size: \"16MiB\" }});
             machine(\"web\", #{{ image: \"{image}\", memory: \"16MiB\", cpu: 0.05,
                 mounts: [#{{ volume: data, path: \"/data\" }}],
                 command: [\"/bin/sh\", \"-c\", \"echo start >> /data/starts; exec sleep 100000\"] }});
             machine(\"api\", #{{ image: \"{image}\", memory: \"16MiB\", cpu: 0.05, command: [\"/bin/sleep\", \"100000\"] }});
             machine(\"off\", #{{ image: \"{image}\", memory: \"16MiB\", cpu: 0.05, command: [\"/bin/sleep\", \"100000\"] }});"
        ),
    );
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
    system.rhizome(&["stop", "app/off"]).ok();
    let (mark, kept) = (mark(&system), ["api", "web"]);
    let before = addresses(&mark, &kept);
    assert!(before.values().all(|a| !a.is_empty()), "{before:?}");
    let starts = system.state.join("node-1/pool/volumes/1.app.data/starts");
    let node = Started::of(system.pids("node")[0]);

    power_off(&system);
    system.forget();
    assert!(!starts.exists(), "the pool is not mounted");
    let mut redis = redis_again(&system.state);
    let mut alone = node.again();
    let lines = || std::fs::read_to_string(&starts).unwrap_or_default();
    eventually("everything is back", Duration::from_secs(60), || {
        let running = |name: &&str| {
            let pids = system.kernel().containers.remove(&format!("1.app.{name}"));
            pids.is_some_and(|pids| !pids.is_empty())
        };
        (kept.iter().all(running) && lines() == "start\nstart\n").then_some(())
    });
    assert!(system.pids("coord").is_empty() && system.pids("ledger").is_empty());
    assert_eq!(addresses(&mark, &kept), before);
    let off = system.kernel().containers.remove("1.app.off");
    assert!(off.is_none_or(|pids| pids.is_empty()), "what was stopped stays stopped");

    // The node ends as it does when its parent goes; then Redis.
    drop(alone.stdin.take());
    eventually("the node alone has ended", Duration::from_secs(60), || alone.try_wait().unwrap());
    kill(Pid::from_raw(redis.id().cast_signed()), Signal::SIGTERM).unwrap();
    redis.wait().unwrap();
    system.up();
    for name in kept {
        let lost = await_drift(&system, name, "lost", 30);
        assert_eq!(lost["action"], "started", "{lost}");
    }
    assert_eq!(lines(), "start\nstart\n", "it ran on meanwhile");
    system.rhizome(&["start", "app/off"]).ok();
}
