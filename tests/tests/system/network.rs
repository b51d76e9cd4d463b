//! How a node is joined to others, as an operator sees it.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_tests::{Answer, System, command, eventually, processes_naming};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_node_without_mycelium_says_so_and_tells_of_its_network() {
    let system = System::start();
    let shown = system.rhizome(&["node", "1"]).ok().json();
    let network = &shown["status"]["network"];
    assert_eq!(network["driver"], "plain IPv6");
    assert_eq!(network["address"], shown["node"]["address"]);
    assert_eq!(network["problem"], Value::Null);
    assert!(system.plain(&["node", "1"]).ok().stdout.contains("network  plain IPv6: well"));

    let key = shown["node"]["key"].as_str().unwrap().to_owned();
    let by_key = system.rhizome(&["address", &key, "1/app/web"]).ok().json();
    assert_eq!(by_key["node"], shown["node"]["address"]);
    let script = system.script("web.rhai", "machine(\"web\", #{ image: params.image });");
    let image = format!("image=file://{}", std::env::var("RHIZOME_TEST_IMAGE").unwrap_or_default());
    if image.len() > "image=file://".len() {
        system.rhizome(&["deploy", &script, "--name", "app", "--param", &image]).ok();
        let deployed = system.rhizome(&["show", "app"]).ok().json();
        let account =
            deployed["deployment"].as_str().unwrap().split('/').next().unwrap().to_owned();
        let known = system.rhizome(&["address", &key, &format!("{account}/app/web")]).ok().json();
        assert!(deployed.to_string().contains(known["address"].as_str().unwrap()), "{deployed:#}");
        system.rhizome(&["delete", "app"]).ok();
    }
    let metrics = eventually("it is measured", SOON, || {
        let text = get(&supervisor_url(&system.state.join("node-1")), "/metrics");
        text.contains("rhizome_network_up").then_some(text)
    });
    assert!(metrics.contains("rhizome_network_up{driver=\"plain IPv6\"} 1"), "{metrics}");
}

#[test]
fn peers_that_are_none_stop_a_node_before_it_makes_anything() {
    let folder = tempfile::tempdir().unwrap();
    for (args, code) in [
        (&["--mycelium-peer", "rubbish"][..], "invalid_peer"),
        (&["--mycelium-peer", "tcp://192.0.2.1:9651,udp://192.0.2.1:1"], "invalid_peer"),
        (&["--mycelium-peer", "tcp://node.example.org:9651"], "invalid_peer"),
        (&["--mycelium-peer", "tcp://192.0.2.1:9651", "--mycelium-alone"], "invalid_peer"),
        (&[], "no_peers"),
    ] {
        let mut node = command();
        node.args(["--json", "node", "--ledger", "http://127.0.0.1:1", "--mycelium", "/bin/true"]);
        node.args(args).arg("--state").arg(folder.path().join("node"));
        let answer: Answer = node.output().unwrap().into();
        answer.refused(2, code);
        assert!(!folder.path().join("node").exists());
    }
}

/// A second node of a system, beside those of its `rhizome dev`; it goes down with them.
struct Beside {
    state: PathBuf,
    redis: Child,
    node: Child,
}

impl Beside {
    fn start(system: &System, args: &[&str]) -> Self {
        let state = system.state.join("node-2");
        std::fs::create_dir(&state).unwrap();
        let socket = state.join("redis.sock");
        let redis = std::process::Command::new("redis-server")
            .args(["--port", "0", "--appendonly", "yes", "--appendfsync", "always", "--save", ""])
            .args(["--maxmemory-policy", "noeviction", "--unixsocketperm", "700"])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(&state)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("redis-server listens", SOON, || socket.exists().then_some(()));
        let text = std::fs::read_to_string(system.state.join("client.json")).unwrap();
        let client: Value = serde_json::from_str(&text).unwrap();
        let coord = system.state.join("coord/coord.key");
        let coord = system.rhizome(&["--key", coord.to_str().unwrap(), "key", "show"]).ok().json();
        let log = std::fs::File::create(system.state.join("logs/node-2.log")).unwrap();
        let mut node = command();
        node.args(["node", "--tpm", "off", "--serial-number", "dev-2", "--network", "dev"])
            .args(["--listen", "127.0.0.1:0", "--farm", "devfarm", "--pool-size", "1073741824"])
            .args(["--ledger", client["ledger"].as_str().unwrap()])
            .args(["--coordinator", coord["key"].as_str().unwrap()])
            .arg("--redis")
            .arg(&socket)
            .arg("--state")
            .arg(&state)
            .args(args);
        Self { node: node.stderr(log).spawn().unwrap(), state, redis }
    }

    fn daemon(&self) -> Option<u32> {
        let key = std::fs::read_to_string(self.state.join("node.json")).ok()?;
        let key: Value = serde_json::from_str(&key).ok()?;
        let tun = format!("rz{}-my", &key["key"].as_str()?[..8]);
        let found = processes_naming(Path::new(&tun));
        found.first().map(|process| process.pid)
    }

    /// As if it had been told to stop by systemd.
    fn stop(&mut self) {
        for child in [&mut self.node, &mut self.redis] {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.stop();
    }
}

#[test]
fn a_node_keeps_its_mycelium_daemon_and_tells_when_it_is_alone_or_dead() {
    let Some(program) = mycelium() else {
        println!("SKIPPED: mycelium is not on PATH");
        return;
    };
    let system = System::start();
    let port = free_port().to_string();
    let mut beside = Beside::start(
        &system,
        &[
            "--mycelium",
            program.to_str().unwrap(),
            "--mycelium-peer",
            "tcp://127.0.0.1:1",
            "--mycelium-port",
            &port,
        ],
    );
    let network = || {
        let answer = system.rhizome(&["node", "2"]);
        (answer.code == 0).then(|| answer.json()["status"]["network"].clone())
    };
    let until = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        eventually(what, SOON, || network().filter(|view| wanted(view)))
    };
    let view = until("its daemon is looked at", &|v| v["peers"].as_array().is_some());
    println!("{view}");
    assert!(view["driver"].as_str().unwrap().starts_with("mycelium "), "{view}");
    assert_eq!(view["peers"][0]["endpoint"], "tcp://127.0.0.1:1");
    assert!(view["problem"].as_str().unwrap().contains("connected to none of its peers"), "{view}");
    let shown = system.rhizome(&["node", "2"]).ok().json();
    assert_eq!(view["address"], shown["node"]["address"], "the daemon has the node's address");
    // It is in the health of the node too, so that the ledger hears it.
    let health = get(&supervisor_url(&beside.state), "/healthz");
    assert!(health.contains("connected to none of its peers"), "{health}");
    let people = system.plain(&["node", "2"]).ok().stdout;
    assert!(people.contains("tcp://127.0.0.1:1  configured"), "{people}");

    let daemon = beside.daemon().unwrap();
    kill(Pid::from_raw(daemon.cast_signed()), Signal::SIGKILL).unwrap();
    let view = until("its death is told", &|v| v["restarts"] == json!(1));
    println!("{view}");
    eventually("another daemon runs", SOON, || beside.daemon().filter(|pid| *pid != daemon));

    // Its key is in no file of the node.
    let log = std::fs::read_to_string(system.state.join("logs/node-2.log")).unwrap();
    assert!(log.contains("Node overlay IP"), "the daemon's words are in the node's log: {log}");
    beside.stop();
    assert_eq!(beside.daemon(), None);
}

fn mycelium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("mycelium")).find(|file| file.is_file())
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

fn supervisor_url(state: &Path) -> String {
    let node: Value =
        serde_json::from_str(&std::fs::read_to_string(state.join("node.json")).unwrap()).unwrap();
    node["listen"].as_str().unwrap().to_owned()
}

fn get(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
