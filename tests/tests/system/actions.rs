//! Signed operations: done once, by whom they should, with what stays true afterwards.

use std::fs::File;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_tests::{System, eventually};
use serde_json::{Value, json};

use crate::image::busybox;

/// A volume and a machine that mounts it.
fn deploy(system: &System) {
    let image = busybox(&system.state);
    let source = format!(
        "let data = volume(\"data\", #{{ size: \"32MiB\" }});
         machine(\"web\", #{{ image: \"{image}\", command: [\"/bin/sleep\", \"100000\"],
             memory: \"32MiB\", mounts: [#{{ volume: data, path: \"/data\" }}] }});"
    );
    let script = system.script("actions.rhai", &source);
    system.rhizome(&["deploy", &script, "--name", "app"]).ok();
}

fn resource(system: &System, name: &str) -> Value {
    let shown = system.rhizome(&["show", "app"]).ok().json();
    let resources = shown["tasks"][0]["resources"].as_array().unwrap();
    resources.iter().find(|r| r["name"] == name).unwrap().clone()
}

fn status(system: &System, name: &str) -> Value {
    resource(system, name)["status"].clone()
}

fn sh(system: &System, script: &str) -> String {
    system.plain(&["exec", "app/web", "--", "/bin/sh", "-c", script]).ok().stdout
}

/// A document of this action, signed.
fn signed(
    system: &System,
    resource: &str,
    action: Value,
    change: impl FnOnce(&mut Value),
) -> String {
    let shown = system.rhizome(&["show", "app"]).ok().json();
    let nonce: String = format!("{:032x}", rand());
    let mut document = json!({
        "account": account(&shown), "name": "app", "version": shown["version"], "node": 1,
        "resource": resource, "action": action, "network": "dev", "expires": now() + 600,
        "nonce": nonce,
    });
    change(&mut document);
    system.with_input(&["sign", "-"], &document.to_string()).ok().stdout
}

fn account(shown: &Value) -> u64 {
    shown["deployment"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap().as_secs()).unwrap()
}

fn rand() -> u128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_nanos()
}

#[test]
fn what_is_stopped_stays_so_until_it_is_started() {
    let mut system = System::start();
    deploy(&system);
    let before = status(&system, "web");
    let job = system.rhizome(&["stop", "app/web"]).ok().json();
    assert_eq!((&job["work"], &job["state"]), (&json!("stop"), &json!("succeeded")));
    assert_eq!(status(&system, "web")["state"], "stopped");
    let record = system.rhizome(&["job", job["id"].as_str().unwrap()]).ok().json();
    assert_eq!(record["result"]["state"], "stopped", "what came of it is read by the job's id");

    // The node goes and comes back, and looks after everything: this it leaves.
    system.down();
    system.up();
    system.rhizome(&["snapshot", "app/data", "after-the-start"]).ok();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(status(&system, "web")["state"], "stopped");

    system.rhizome(&["start", "app/web"]).ok();
    let started = eventually("it runs", Duration::from_secs(20), || {
        Some(status(&system, "web")).filter(|s| s["state"] == "running")
    });
    assert_ne!(started["pid"], before["pid"]);
    let again = system.rhizome(&["start", "app/web"]).ok().json();
    assert_eq!(again["result"]["pid"], started["pid"], "what runs is left alone");
    let restarted = system.rhizome(&["restart", "app/web"]).ok().json();
    assert_ne!(restarted["result"]["pid"], started["pid"]);

    let text = system.plain(&["stop", "app/web"]).ok();
    assert!(text.stdout.contains("/app/web: done after"), "{}", text.stdout);
    let job = system.rhizome(&["start", "app/web", "--detach"]).ok().json();
    assert!(job["id"].is_string(), "{job}");
    system.rhizome(&["stop", "app/nothing"]).refused(1, "not_found");
    system.rhizome(&["stop", "app/data"]).refused(1, "bad_request");
    system.rhizome(&["delete", "app"]).ok();
}

#[test]
fn a_volume_goes_back_to_its_snapshot() {
    let system = System::start();
    deploy(&system);
    sh(&system, "echo one > /data/a");
    system.rhizome(&["snapshot", "app/data", "monday"]).ok();
    sh(&system, "echo two > /data/a");
    system.rhizome(&["snapshot", "app/data", "monday"]).refused(3, "conflict");
    let kept = status(&system, "data")["snapshots"].clone();
    assert_eq!(kept[0]["name"], "monday", "{kept}");
    system.rhizome(&["restore", "app/data", "monday"]).refused(3, "conflict");
    assert_eq!(sh(&system, "cat /data/a"), "two\n");
    system.rhizome(&["stop", "app/web"]).ok();
    system.rhizome(&["restore", "app/data", "monday"]).ok();
    system.rhizome(&["restore", "app/data", "tuesday"]).refused(1, "not_found");
    system.rhizome(&["start", "app/web"]).ok();
    assert_eq!(sh(&system, "cat /data/a"), "one\n");
    system.rhizome(&["snapshot", "app/data", "monday", "--drop"]).ok();
    assert_eq!(status(&system, "data")["snapshots"], json!([]));
    system.rhizome(&["snapshot", "app/data", "last"]).ok();
    sh(&system, "rm /data/a");
    let nothing = system.script("nothing.rhai", "output(\"ok\", 1);");
    let deploy = ["deploy", &nothing, "--name", "app"];
    system.rhizome(&deploy).refused(3, "data_loss");
    system.rhizome(&["delete", "app"]).ok();
    let left = std::fs::read_dir(system.state.join("node-1/pool/snapshots")).unwrap().count();
    assert_eq!(left, 0, "a volume takes its snapshots with it");
}

#[test]
fn a_new_size_is_desired_reserved_and_kept() {
    let mut system = System::start();
    deploy(&system);
    let usage = |system: &System| {
        system.rhizome(&["node", "1"]).ok().json()["status"]["usage"]["reserved"].clone()
    };
    let before = usage(&system);
    let job = system.rhizome(&["resize", "app/data", "--size", "64MiB"]).ok().json();
    assert_eq!(job["result"]["size"], 64 << 20);
    assert_eq!(resource(&system, "data")["spec"]["size"], 64 << 20);
    let disk = |v: &Value| v["disk"].as_u64().unwrap();
    assert_eq!(disk(&usage(&system)), disk(&before) + (32 << 20));
    let pid = status(&system, "web")["pid"].clone();
    system.rhizome(&["resize", "app/web", "--memory", "48MiB", "--cpu", "0.5"]).ok();
    assert_eq!(status(&system, "web")["pid"], pid, "it went on running");
    let reserved = usage(&system);
    assert_eq!(reserved["memory"].as_u64(), Some(48 << 20));

    // What does not fit, or makes no sense, changes nothing.
    sh(&system, "dd if=/dev/zero of=/data/big bs=1M count=40 && sync");
    system.rhizome(&["resize", "app/data", "--size", "100TiB"]).refused(3, "insufficient_capacity");
    system.rhizome(&["resize", "app/data", "--size", "8MiB"]).refused(3, "below_use");
    system.rhizome(&["resize", "app/data", "--cpu", "2"]).refused(3, "invalid_spec");
    assert_eq!(system.rhizome(&["resize", "app/data"]).code, 2);
    assert_eq!(usage(&system), reserved);
    assert_eq!(resource(&system, "data")["spec"]["size"], 64 << 20);

    // Several at once: none is forgotten.
    std::thread::scope(|scope| {
        let system = &system;
        scope.spawn(move || system.rhizome(&["resize", "app/data", "--size", "72MiB"]).ok());
        scope.spawn(move || system.rhizome(&["resize", "app/web", "--memory", "40MiB"]).ok());
    });
    assert_eq!(resource(&system, "data")["spec"]["size"], 72 << 20);
    assert_eq!(resource(&system, "web")["spec"]["memory"], 40 << 20);

    // The node looks after it as it is now.
    system.down();
    system.up();
    eventually("the machine is back", Duration::from_secs(30), || {
        let done = system.plain(&["exec", "app/web", "--", "/bin/true"]);
        (done.code == 0).then_some(())
    });
    sh(&system, "dd if=/dev/zero of=/data/more bs=1M count=25 && sync");
    assert_eq!(status(&system, "data")["size"], 72 << 20);
}

/// Nothing is half resized, whoever dies: what was reserved comes to be desired, or is given back.
#[test]
fn a_resize_survives_its_runner() {
    let system = System::start();
    deploy(&system);
    let reserved = |system: &System| {
        let usage = system.rhizome(&["node", "1"]).ok().json()["status"]["usage"].clone();
        usage["reserved"]["disk"].as_u64().unwrap()
    };
    let before = reserved(&system);
    // The SAL waits for its lock; until then the job has come as far as the reservation.
    let held = hold(&system, "volume.1.app.data");
    let job = system.rhizome(&["resize", "app/data", "--size", "48MiB", "--detach"]).ok().json();
    let id = job["id"].as_str().unwrap();
    eventually("it is reserved", Duration::from_secs(20), || {
        (reserved(&system) == before + (16 << 20)).then_some(())
    });
    assert_eq!(resource(&system, "data")["spec"]["size"], 32 << 20, "not desired before it is so");
    let pools = system.rhizome(&["runners"]).ok().json()["pools"].clone();
    let pools = pools.as_array().unwrap();
    let pool = pools.iter().find(|p| p["queues"].to_string().contains("volume-actions")).unwrap();
    let pid = pool["runners"][0]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    drop(held);
    let ended = eventually("another runner has done it", Duration::from_secs(60), || {
        let job = system.rhizome(&["job", id]).ok().json();
        (job["state"] != "running" && job["state"] != "queued").then_some(job)
    });
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert_eq!(ended["attempts"].as_array().unwrap().len(), 2, "{ended}");
    assert_eq!(resource(&system, "data")["spec"]["size"], 48 << 20);
    assert_eq!(status(&system, "data")["size"], 48 << 20);
    assert_eq!(reserved(&system), before + (16 << 20));
}

fn hold(system: &System, resource: &str) -> Flock<File> {
    let path = system.state.join(format!("node-1/locks/{resource}"));
    let file = File::options().create(true).append(true).open(path).unwrap();
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e).unwrap()
}

#[test]
fn envelopes_of_operations_are_believed_once_and_by_their_node() {
    let system = System::start();
    deploy(&system);
    let submit = |envelope: &str| system.with_input(&["submit", "-"], envelope);
    let exec = |script: &str| json!({ "action": "exec", "command": ["/bin/sh", "-c", script] });
    let stop = || json!({ "action": "stop" });

    // The same envelope is the same job, and is done once.
    let once = signed(&system, "web", exec("echo x >> /data/once; echo said"), |_| {});
    let first = submit(&once).ok().json();
    assert_eq!(first["result"]["exit_code"], 0);
    let second = submit(&once).ok().json();
    assert_eq!(first["id"], second["id"]);
    assert_eq!(sh(&system, "cat /data/once"), "x\n");
    assert_eq!(second["log"], json!(["said"]), "what it printed is read by the job's id");
    assert_eq!(first["trace"], second["trace"]);

    // Its nonce is used up.
    let nonce = document_of(&once)["nonce"].clone();
    let other = signed(&system, "web", stop(), |d| d["nonce"] = nonce.clone());
    submit(&other).refused(3, "replayed");

    let expires = now() + 600;
    for (field, value, code, word) in [
        ("expires", json!(1_000_000_000), 3, "expired"),
        ("not_before", json!(expires - 10), 3, "not_yet_valid"),
        ("network", json!("main"), 3, "wrong_network"),
        ("account", json!(4711), 3, "unknown_account"),
        ("node", json!(99), 3, "wrong_node"),
        ("version", json!(9), 3, "stale_version"),
        ("name", json!("other"), 1, "not_found"),
        ("resource", json!("nothing"), 1, "not_found"),
        ("colour", json!("red"), 3, "invalid_document"),
        ("action", json!({ "action": "wait" }), 3, "invalid_document"),
        ("nonce", json!("short"), 3, "invalid_document"),
    ] {
        let envelope = signed(&system, "web", stop(), |d| d[field] = value);
        submit(&envelope).refused(code, word);
    }
    let mut tampered: Value = serde_json::from_str(&once).unwrap();
    let envelope: Value = serde_json::from_str(&signed(&system, "web", stop(), |_| {})).unwrap();
    tampered["payload"] = envelope["payload"].clone();
    submit(&tampered.to_string()).refused(3, "bad_signature");

    // Another account's signature under our document.
    let key = system.state.join("second.key");
    let key = key.to_string_lossy();
    system.rhizome(&["--key", &key, "key", "new"]).ok();
    system.rhizome(&["--key", &key, "account", "register"]).ok();
    let document = document_of(&envelope.to_string()).to_string();
    let foreign = system.with_input(&["--key", &key, "sign", "-"], &document).ok().stdout;
    submit(&foreign).refused(3, "unauthorised");
    assert_eq!(status(&system, "web")["state"], "running", "none of them stopped it");

    // Straight to the node, past the coordinator: it believes nobody.
    let node = std::fs::read(system.state.join("node-1/node.json")).unwrap();
    let node: Value = serde_json::from_slice(&node).unwrap();
    let url = format!("http://{}", node["listen"].as_str().unwrap());
    let direct =
        |envelope: &str| system.with_input(&["--coord", &url, "submit", "--detach", "-"], envelope);
    direct(&foreign).refused(3, "unauthorised");
    direct(&other).refused(3, "replayed");
    direct(&signed(&system, "web", stop(), |d| d["node"] = json!(2))).refused(3, "wrong_node");
    direct(&signed(&system, "web", stop(), |d| d["expires"] = json!(1))).refused(3, "expired");
    assert_eq!(direct(&once).ok().json()["id"], first["id"]);
    // After its end it is still the same job, also when it has expired.
    let short = signed(&system, "web", exec("echo y >> /data/short"), |d| {
        d["expires"] = json!(now() + 2);
    });
    let job = direct(&short).ok().json();
    eventually("it has expired", Duration::from_secs(10), || {
        (now() > document_of(&short)["expires"].as_i64().unwrap()).then_some(())
    });
    assert_eq!(direct(&short).ok().json()["id"], job["id"]);
    assert_eq!(sh(&system, "cat /data/short"), "y\n");
}

fn document_of(envelope: &str) -> Value {
    let envelope = rhizome_model::Envelope::from_json(envelope.as_bytes()).unwrap();
    serde_json::from_slice(&envelope.payload).unwrap()
}

#[test]
fn a_script_takes_a_snapshot_and_goes_back_to_it() {
    let system = System::start();
    let image = busybox(&system.state);
    let source = format!(
        "let data = volume(\"data\", #{{ size: \"16MiB\" }});
         let web = machine(\"web\", #{{ image: \"{image}\", command: [\"/bin/sleep\", \"100000\"],
             memory: \"32MiB\", mounts: [#{{ volume: data, path: \"/data\" }}] }});
         fn sh(web, script) {{ web.exec([\"/bin/sh\", \"-c\", script]).exit_code }}
         sh(web, \"echo one > /data/a\");
         let kept = data.snapshot(\"before\");
         sh(web, \"echo two > /data/a\");
         let refused = \"\";
         try {{ data.restore(\"before\"); }} catch (error) {{ refused = error.code; }}
         web.stop();
         data.restore(\"before\");
         web.start();
         let grown = data.resize(#{{ size: \"48MiB\" }});
         output(\"kept\", kept.name);
         output(\"refused\", refused);
         output(\"same\", sh(web, \"grep -q one /data/a\"));
         output(\"restarted\", web.restart().state);
         output(\"grown\", grown.size);"
    );
    let script = system.script("snapshots.rhai", &source);
    let outputs =
        system.rhizome(&["deploy", &script, "--name", "app"]).ok().json()["outputs"].clone();
    assert_eq!(
        outputs,
        json!({ "kept": "before", "refused": "conflict", "same": 0, "restarted": "running",
            "grown": 48 << 20 })
    );
    // What the script made of it is what is kept so.
    let data = resource(&system, "data");
    assert_eq!(
        (&data["spec"]["size"], &data["status"]["size"]),
        (&json!(48 << 20), &json!(48 << 20))
    );
    assert_eq!(data["status"]["snapshots"][0]["name"], "before");
    let reserved = system.rhizome(&["show", "app"]).ok().json()["tasks"][0]["reserved"].clone();
    let web = resource(&system, "web")["spec"]["disk"].as_u64().unwrap();
    assert_eq!(reserved["disk"].as_u64().unwrap(), web + (48 << 20));

    let bad = system.script("bad.rhai", "volume(\"d\", #{ size: \"1MiB\" }).snapshot(\"../x\");");
    let answer = system.rhizome(&["deploy", &bad, "--name", "bad"]);
    assert_ne!(answer.code, 0, "{}", answer.stdout);
}
