//! Databases: real engines, asked over their addresses as clients do.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::{Action, Code, ResourceId, WorkloadKind};
use rhizome_sal::{Ensured, SalError, Workload};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::crash::{child, kind_killed_after};
use crate::world::{World, assert_code, collect, id, names};

const PASSWORD: &str = "correct-horse-battery";

fn databases(world: &World) -> std::sync::Arc<dyn Workload> {
    world.sal.workload(WorkloadKind::Herodb)
}

fn spec(size: &str) -> Value {
    json!({ "size": size, "memory": "64MiB", "cpu": 1, "password": PASSWORD })
}

async fn ensure(world: &World, id: &ResourceId, spec: &Value) -> Result<Ensured, SalError> {
    databases(world).ensure(id, spec).await
}

async fn act(world: &World, id: &ResourceId, action: Action) -> Result<(Value, String), SalError> {
    let (sender, receiver) = mpsc::channel(16);
    let printed = tokio::spawn(collect(receiver));
    let by = format!("test {:?}", Instant::now());
    let answer = databases(world).act(id, &action, &by, sender, CancellationToken::new()).await;
    Ok((answer?, printed.await.unwrap()))
}

async fn status(world: &World, id: &ResourceId) -> Value {
    databases(world).observe(id).await.unwrap().unwrap_or(Value::Null)
}

async fn until(world: &World, id: &ResourceId, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = status(world, id).await;
        if wanted(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "still {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_good(status: &Value) -> bool {
    status["state"] == "running" && status["health"]["status"] == "good"
}

/// A client of a tenant.
struct Client(BufReader<TcpStream>);

impl Client {
    fn open(status: &Value) -> Self {
        let address: Ipv6Addr = status["address"].as_str().unwrap().parse().unwrap();
        let port = u16::try_from(status["port"].as_u64().unwrap()).unwrap();
        let stream = TcpStream::connect(SocketAddr::from((address, port))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(BufReader::new(stream))
    }

    fn with(status: &Value, password: &str) -> Self {
        let mut client = Self::open(status);
        assert_eq!(client.ask(&["AUTH", password]), "+OK");
        client
    }

    /// A reply as it comes; of a text the text, and nothing when the connection is closed.
    fn ask(&mut self, words: &[&str]) -> String {
        let mut request = format!("*{}\r\n", words.len());
        words.iter().for_each(|w| request += &format!("${}\r\n{w}\r\n", w.len()));
        let _ = self.0.get_mut().write_all(request.as_bytes());
        let mut line = String::new();
        let _ = self.0.read_line(&mut line);
        match line.trim_end().strip_prefix('$').map(|n| n.parse::<usize>()) {
            Some(Ok(length)) => {
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes[..length]).into_owned()
            }
            _ => line.trim_end().to_owned(),
        }
    }
}

fn run_folder(world: &World, id: &ResourceId) -> PathBuf {
    world.config.state.join("run/herodbs").join(id.file_name())
}

fn engine_pid(world: &World, id: &ResourceId) -> Pid {
    let text = fs::read_to_string(run_folder(world, id).join("pid")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap())
}

/// Nothing of it is left, wherever a database is.
fn assert_gone(world: &World) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let groups = |folder: PathBuf| {
        let inside = names(&folder).into_iter();
        inside.filter(|name| ResourceId::from_file_name(name).is_ok()).collect::<Vec<_>>()
    };
    loop {
        let mut found = world.traces();
        found.extend(names(&world.pool().join("herodbs")));
        found.extend(names(&world.config.state.join("run/herodbs")));
        for hierarchy in crate::world::hierarchies() {
            let group = hierarchy.join(world.mark()).join("herodb");
            found.extend(groups(group.join("shims")));
            found.extend(groups(group));
        }
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left over: {found:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn it_answers_on_its_address_to_who_knows_the_password() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap();
    assert_eq!(made.done, rhizome_model::Done::Created);
    let status = made.status;
    assert!(is_good(&status), "{status}");
    let driver = status["driver"].as_str().unwrap();
    println!("engine: {driver}");
    assert!(["redis-server ", "valkey-server ", "herodb "].iter().any(|e| driver.starts_with(e)));
    assert_eq!((&status["keys"], &status["port"]), (&json!(0), &json!(6379)));
    assert_eq!(status["size"], 64 << 20);

    let mut stranger = Client::open(&status);
    for words in [&["PING"][..], &["GET", "a"], &["SET", "a", "1"]] {
        assert!(stranger.ask(words).starts_with("-NOAUTH"), "{words:?}");
    }
    assert!(stranger.ask(&["AUTH", "correct-horse"]).starts_with("-WRONGPASS"));
    let mut client = Client::with(&status, PASSWORD);
    assert_eq!(client.ask(&["PING"]), "+PONG");
    assert_eq!(client.ask(&["SET", "a", "1"]), "+OK");
    assert_eq!(client.ask(&["GET", "a"]), "1");
    for words in [
        &["CONFIG", "SET", "dir", "/tmp"][..],
        &["SHUTDOWN"],
        &["ACL", "LIST"],
        &["DEBUG", "SLEEP", "0"],
        &["REPLICAOF", "::1", "1"],
    ] {
        let said = client.ask(words);
        assert!(said.starts_with("-NOPERM") || said.starts_with("-ERR"), "{words:?}: {said}");
    }

    // Neither a command line, nor the environment, nor a file holds the password.
    let pid = engine_pid(&world, &id);
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(PASSWORD), "{file}");
    }
    let mut grep = Command::new("grep");
    grep.args(["-rl", PASSWORD]).args(["run", "logs"].map(|f| world.config.state.join(f)));
    let found = grep.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert!(!status.to_string().contains(PASSWORD), "{status}");
    let proc = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["Uid:\t65533\t65533\t65533\t65533", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"]
    {
        assert!(proc.lines().any(|l| l == line), "{line} is not in {proc}");
    }

    // Asked for again, nothing happens.
    let again = ensure(&world, &id, &spec("64MiB")).await.unwrap();
    assert_eq!((again.done, engine_pid(&world, &id)), (rhizome_model::Done::Unchanged, pid));
    assert_eq!(databases(&world).list().await.unwrap(), std::slice::from_ref(&id));
    assert!(world.machines.list().await.unwrap().is_empty(), "it is no machine");
    assert!(world.volumes.list().await.unwrap().is_empty(), "nor a volume");

    let (_, printed) = act(&world, &id, Action::Logs { tail: 50, follow: false }).await.unwrap();
    assert!(printed.contains("Ready to accept connections"), "{printed}");
    let name = "monday".parse().unwrap();
    assert_code(act(&world, &id, Action::Snapshot { name }).await, Code::BadRequest);
    databases(&world).delete(&id).await.unwrap();
    databases(&world).delete(&id).await.unwrap();
    assert_gone(&world);
}

#[tokio::test]
async fn what_was_acknowledged_outlives_a_killed_engine() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    let mut client = Client::with(&made, PASSWORD);
    let first = engine_pid(&world, &id);
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        kill(first, Signal::SIGKILL).unwrap();
    });
    let mut acknowledged = 0u64;
    while client.ask(&["SET", &format!("key-{acknowledged}"), "value"]) == "+OK" {
        acknowledged += 1;
    }
    killer.join().unwrap();
    assert!(acknowledged > 0);
    let back = until(&world, &id, |s| is_good(s) && s["restarts"] == 1).await;
    assert!(back["last_exit"].as_str().unwrap().contains("signal 9"), "{back}");
    let mut client = Client::with(&back, PASSWORD);
    for n in 0..acknowledged {
        assert_eq!(client.ask(&["GET", &format!("key-{n}")]), "value", "{n} of {acknowledged}");
    }
    println!("{acknowledged} writes were acknowledged, and all are there");

    // Its shim and the engine gone at once: keep starts it again, with what it held.
    let group = crate::world::hierarchies().into_iter().find_map(|h| {
        let shims =
            h.join(world.mark()).join("herodb/shims").join(id.file_name()).join("cgroup.procs");
        fs::read_to_string(shims).ok()
    });
    for pid in group.unwrap().lines().map(|l| l.parse().unwrap()) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    kill(engine_pid(&world, &id), Signal::SIGKILL).ok();
    let kept = databases(&world).keep(&id, &spec("64MiB")).await.unwrap();
    assert_eq!(kept.drifted.len(), 1, "{kept:?}");
    let back = until(&world, &id, is_good).await;
    // One more may be in that nobody was told of.
    assert!((acknowledged..=acknowledged + 1).contains(&back["keys"].as_u64().unwrap()), "{back}");
    databases(&world).delete(&id).await.unwrap();
    assert_gone(&world);
}

#[tokio::test]
async fn stopped_stays_stopped_and_keeps_its_data() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    assert_eq!(Client::with(&made, PASSWORD).ask(&["SET", "a", "1"]), "+OK");
    let (stopped, _) = act(&world, &id, Action::Stop).await.unwrap();
    assert_eq!((&stopped["state"], &stopped["keys"]), (&json!("stopped"), &Value::Null));
    let kept = databases(&world).keep(&id, &spec("64MiB")).await.unwrap();
    assert!(kept.drifted.is_empty(), "{kept:?}");
    assert_eq!(status(&world, &id).await["state"], "stopped");
    let (started, _) = act(&world, &id, Action::Start).await.unwrap();
    assert!(is_good(&started), "{started}");
    assert_eq!(Client::with(&started, PASSWORD).ask(&["GET", "a"]), "1");
    let (restarted, _) = act(&world, &id, Action::Restart).await.unwrap();
    assert_eq!(Client::with(&restarted, PASSWORD).ask(&["GET", "a"]), "1");
}

#[tokio::test]
async fn password_memory_and_size_change_while_it_runs() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    let mut client = Client::with(&made, PASSWORD);
    assert_eq!(client.ask(&["SET", "a", "1"]), "+OK");
    let pid = engine_pid(&world, &id);

    let other = "another-password-of-theirs";
    let mut new = spec("128MiB");
    (new["password"], new["memory"]) = (json!(other), json!("96MiB"));
    let done = ensure(&world, &id, &new).await.unwrap();
    assert_eq!(done.done, rhizome_model::Done::Updated);
    assert_eq!((&done.status["size"], engine_pid(&world, &id)), (&json!(128 << 20), pid));
    assert_eq!(client.ask(&["GET", "a"]), "", "who came with the old password is cut off");
    assert!(Client::open(&done.status).ask(&["AUTH", PASSWORD]).starts_with("-WRONGPASS"));
    let mut client = Client::with(&done.status, other);
    assert_eq!(client.ask(&["GET", "a"]), "1");

    // More than fits into less memory: refused, and nothing has changed.
    let big = "x".repeat(1 << 20);
    for n in 0..14 {
        assert_eq!(client.ask(&["SET", &format!("big-{n}"), &big]), "+OK");
    }
    let small = json!({ "size": "64MiB", "memory": "64MiB", "cpu": 1, "password": other });
    let error = assert_code(ensure(&world, &id, &small).await, Code::QuotaExceeded);
    assert!(error.to_string().contains("remove keys first"), "{error}");
    let kept = databases(&world).keep(&id, &new).await.unwrap();
    assert!(kept.drifted.is_empty(), "{kept:?}");
    assert_eq!(client.ask(&["GET", "a"]), "1");

    // The new password also holds after a restart.
    let (restarted, _) = act(&world, &id, Action::Restart).await.unwrap();
    assert_eq!(Client::with(&restarted, other).ask(&["GET", "a"]), "1");
}

#[tokio::test]
async fn a_full_one_refuses_writes_says_so_and_takes_them_again_when_it_grows() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    let mut client = Client::with(&made, PASSWORD);
    let value = "x".repeat(100 << 10);
    let mut written = 0;
    let refusal = loop {
        match client.ask(&["SET", &format!("key-{written}"), &value]).as_str() {
            "+OK" => written += 1,
            other => break other.to_owned(),
        }
        assert!(written < 1000);
    };
    assert!(refusal.starts_with("-OOM"), "{refusal}");
    let full = status(&world, &id).await;
    assert!(full["health"]["reason"].as_str().unwrap().contains("refuses writes"), "{full}");
    assert_eq!(client.ask(&["GET", "key-0"]), value, "it can be read");
    let grown = ensure(&world, &id, &spec("128MiB")).await.unwrap().status;
    assert!(is_good(&grown), "{grown}");
    assert_eq!(client.ask(&["SET", "more", &value]), "+OK", "the same client goes on");
    assert_eq!(grown["restarts"], 0);
}

#[tokio::test]
async fn one_whose_volume_was_filled_by_others_loses_nothing_and_heals() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    let mut client = Client::with(&made, PASSWORD);
    for n in 0..100 {
        assert_eq!(client.ask(&["SET", &format!("key-{n}"), "value"]), "+OK");
    }
    // What the engine cannot foresee: there is less room than its limit says.
    let junk = world.pool().join("herodbs").join(id.file_name()).join("junk");
    let mut file = fs::File::create(&junk).unwrap();
    for piece in [4 << 20, 64 << 10] {
        while file.write_all(&vec![7; piece]).and_then(|()| file.sync_data()).is_ok() {}
    }
    drop(file);
    let value = "y".repeat(300 << 10);
    let mut acknowledged = 0;
    while client.ask(&["SET", &format!("late-{acknowledged}"), &value]) == "+OK" {
        acknowledged += 1;
        assert!(acknowledged < 200);
    }
    let closed = until(&world, &id, |s| s["state"] == "running" && s["keys"].is_u64()).await;
    let reason = closed["health"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("its volume is full"), "{closed}");
    let mut client = Client::with(&closed, PASSWORD);
    assert_eq!(closed["keys"], json!(100 + acknowledged));
    assert_eq!(client.ask(&["GET", "key-99"]), "value");
    let refusal = client.ask(&["SET", "a", "1"]);
    assert!(refusal.starts_with("-NOREPLICAS"), "{refusal}");

    let grown = ensure(&world, &id, &spec("128MiB")).await.unwrap().status;
    assert!(is_good(&grown), "{grown}");
    assert_eq!(client.ask(&["SET", "a", "1"]), "+OK");
    let kept = databases(&world).keep(&id, &spec("128MiB")).await.unwrap();
    assert!(kept.drifted.is_empty(), "{kept:?}");
    databases(&world).delete(&id).await.unwrap();
    assert_gone(&world);
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_nothing_is_left() {
    let world = World::new().await;
    let id = id("1/demo/db");
    for (wrong, says) in [
        (json!({ "size": "1MiB", "password": PASSWORD }), "size: at least"),
        (json!({ "size": "64MiB", "memory": "1MiB", "password": PASSWORD }), "memory: at least"),
        (json!({ "size": "64MiB", "password": "short" }), "password: 12 to"),
        (json!({ "size": "64MiB", "password": "with spaces and @" }), "password: only letters"),
        (json!({ "size": "64MiB" }), "has no password"),
        (json!({ "size": "64MiB", "password": PASSWORD, "colour": 1 }), "unknown field"),
    ] {
        let error = assert_code(ensure(&world, &id, &wrong).await, Code::InvalidSpec);
        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.to_string().contains("spaces and"), "{error}");
    }
    assert_code(ensure(&world, &id, &spec("2GiB")).await, Code::PoolFull);
    assert_code(act(&world, &id, Action::Start).await, Code::NotFound);
    assert_gone(&world);
}

#[tokio::test]
async fn an_engine_that_cannot_start_says_why_and_leaves_nothing() {
    let world = World::new().await;
    let id = id("1/demo/db");
    // Its log of changes is no log: whoever made it, it is not lost for that.
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    assert_eq!(Client::with(&made, PASSWORD).ask(&["SET", "a", "1"]), "+OK");
    act(&world, &id, Action::Stop).await.unwrap();
    let log = world.pool().join("herodbs").join(id.file_name()).join("appendonlydir");
    let manifest = fs::read_dir(&log).unwrap().flatten().map(|e| e.path());
    let manifest =
        manifest.into_iter().find(|p| p.extension().is_some_and(|e| e == "manifest")).unwrap();
    let good = fs::read(&manifest).unwrap();
    fs::write(&manifest, "this is no manifest\n").unwrap();
    let error = assert_code(act(&world, &id, Action::Start).await, Code::StartFailed);
    assert!(error.detail().unwrap_or_default().contains("manifest"), "{error:?}");
    fs::write(&manifest, good).unwrap();
    let back = until(&world, &id, is_good).await;
    assert_eq!(Client::with(&back, PASSWORD).ask(&["GET", "a"]), "1");
    databases(&world).delete(&id).await.unwrap();
    assert_gone(&world);
}

#[tokio::test]
async fn redis_benchmark_works_over_its_address() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    let run = Command::new("timeout")
        .args(["60", "redis-benchmark", "-h", made["address"].as_str().unwrap(), "-p", "6379"])
        .args(["-a", PASSWORD, "-q", "-n", "2000", "-c", "10", "-t", "ping,set,get,incr,lpush"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout).replace('\r', "\n");
    let results: Vec<_> = said.lines().filter(|l| l.contains("requests per second")).collect();
    println!("{}", results.join("\n"));
    assert!(
        run.status.success() && results.len() >= 6,
        "{said}\n{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

#[tokio::test]
async fn whatever_is_killed_while_it_is_made_or_deleted_ends_as_asked() {
    let world = World::new().await;
    let (name, spec) = ("1/demo/db", spec("64MiB"));
    let id = id(name);
    let mut unfinished = 0;
    for round in 0..14u32 {
        let after = Duration::from_millis(10) * (round + 1);
        let kind = WorkloadKind::Herodb;
        unfinished += usize::from(!kind_killed_after(&world, kind, name, &spec, false, after));
        if round % 3 == 2 {
            databases(&world).delete(&id).await.unwrap();
            assert_gone(&world);
            continue;
        }
        let status = ensure(&world, &id, &spec).await.unwrap().status;
        assert!(is_good(&status), "{status}");
        let mut client = Client::with(&status, PASSWORD);
        assert_eq!(client.ask(&["SET", "a", "1"]), "+OK");
        assert_eq!(databases(&world).list().await.unwrap(), std::slice::from_ref(&id));
        if round % 3 == 1 {
            kind_killed_after(&world, kind, name, &spec, true, after / 3);
            databases(&world).delete(&id).await.unwrap();
            assert_gone(&world);
        }
    }
    assert!(unfinished >= 5, "only {unfinished} were killed before they were done");
    databases(&world).delete(&id).await.unwrap();
    assert_gone(&world);
}

#[tokio::test]
async fn what_is_taken_from_it_is_put_back() {
    let world = World::new().await;
    let (id, spec) = (id("1/demo/db"), spec("64MiB"));
    let made = ensure(&world, &id, &spec).await.unwrap().status;
    let pid = engine_pid(&world, &id);
    let run = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
    };
    let link = names(std::path::Path::new("/sys/class/net")).into_iter().find(|link| {
        let alias =
            fs::read_to_string(format!("/sys/class/net/{link}/ifalias")).unwrap_or_default();
        alias.trim() == format!("rhizome:{}:herodb:{id}", world.mark())
    });
    run("ip", &["link", "delete", &link.unwrap()]);
    let root = world.pool().join("herodbs").join(id.file_name());
    run("btrfs", &["qgroup", "limit", "-e", "none", root.to_str().unwrap()]);
    let kept = databases(&world).keep(&id, &spec).await.unwrap();
    let drifts: Vec<_> = kept.drifted.iter().map(|d| json!(d.drift)).collect();
    assert_eq!(drifts, [json!("limit"), json!("network")], "{kept:?}");
    assert!(is_good(&kept.status), "{}", kept.status);
    assert_eq!(Client::with(&made, PASSWORD).ask(&["PING"]), "+PONG");
    assert_eq!(engine_pid(&world, &id), pid, "it was not started again");
    assert!(databases(&world).keep(&id, &spec).await.unwrap().drifted.is_empty());

    // The whole node goes down and comes up again.
    assert_eq!(Client::with(&made, PASSWORD).ask(&["SET", "a", "1"]), "+OK");
    world.sal.down().await.unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    let sal = rhizome_sal::Sal::up(world.config.clone()).await.unwrap();
    let kept = sal.workload(WorkloadKind::Herodb).keep(&id, &spec).await.unwrap();
    assert_eq!(kept.drifted.len(), 1, "{kept:?}");
    assert!(is_good(&kept.status), "{}", kept.status);
    assert_eq!(Client::with(&kept.status, PASSWORD).ask(&["GET", "a"]), "1");
}

#[tokio::test]
async fn one_that_hangs_is_seen_and_one_that_goes_on_is_good_again() {
    let world = World::new().await;
    let (id, spec) = (id("1/demo/db"), spec("64MiB"));
    ensure(&world, &id, &spec).await.unwrap();
    let pid = engine_pid(&world, &id);
    kill(pid, Signal::SIGSTOP).unwrap();
    let hung = status(&world, &id).await;
    let reason = hung["health"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("does not answer: nothing came within 2s"), "{hung}");
    assert_eq!((&hung["state"], &hung["keys"]), (&json!("running"), &Value::Null));
    kill(pid, Signal::SIGCONT).unwrap();
    let good = status(&world, &id).await;
    assert!(is_good(&good));
    assert_eq!(Client::with(&good, PASSWORD).ask(&["SET", "a", "1"]), "+OK");

    // Who looks after it starts it again.
    kill(pid, Signal::SIGSTOP).unwrap();
    let kept = databases(&world).keep(&id, &spec).await.unwrap();
    assert_eq!(json!(kept.drifted[0].drift), "hung", "{kept:?}");
    assert!(is_good(&kept.status), "{}", kept.status);
    assert_ne!(engine_pid(&world, &id), pid);
    assert_eq!(Client::with(&kept.status, PASSWORD).ask(&["GET", "a"]), "1");
}

#[tokio::test]
async fn a_small_one_is_written_over_and_over_and_never_fills_its_volume() {
    let world = World::new().await;
    let id = id("1/demo/db");
    let made = ensure(&world, &id, &spec("64MiB")).await.unwrap().status;
    // More than its size goes through its log, which is written anew again and again.
    let run = Command::new("timeout")
        .args(["60", "redis-benchmark", "-h", made["address"].as_str().unwrap(), "-p", "6379"])
        .args(["-a", PASSWORD, "-q", "-t", "set", "-n", "24000", "-r", "1200", "-d", "4000"])
        .args(["-c", "4", "-P", "8"])
        .output()
        .unwrap();
    let (said, wrong) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let after = status(&world, &id).await;
    println!("{after}");
    assert!(run.status.success(), "{said}\n{wrong}\n{after}");
    assert!(is_good(&after), "{after}");
    assert_eq!((&after["restarts"], &after["keys"]), (&json!(0), &json!(1200)));
    assert!(after["used"].as_u64().unwrap() <= 64 << 20, "{after}");
}

/// A program of this name that says this when it is asked for its version.
fn pretend(folder: &std::path::Path, says: &str) {
    use std::os::unix::fs::PermissionsExt;
    let program = folder.join("herodb");
    fs::write(&program, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn herodb_comes_first_where_it_can_have_a_password() {
    let world = World::new().await;
    let (name, spec) = ("1/demo/db", spec("64MiB"));
    let id = id(name);
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let make = || {
        let mut child = child(&world, WorkloadKind::Herodb, name, &spec, false);
        let done = child.env("PATH", &path).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    pretend(folder.path(), "herodb 0.1.0");
    // Asked for by name, it is not passed over in silence.
    let mut wishes = child(&world, WorkloadKind::Herodb, name, &spec, false);
    let done = wishes.env("RHIZOME_HERODB", folder.path().join("herodb")).output().unwrap();
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(said.contains("RHIZOME_HERODB asks for") && said.contains("MissingTool"), "{said}");
    assert_gone(&world);
    make();
    let driver = status(&world, &id).await["driver"].clone();
    assert!(!driver.as_str().unwrap().starts_with("herodb"), "{driver}: it could have no password");
    databases(&world).delete(&id).await.unwrap();

    // An engine by that name, outside of /usr.
    let mut which = Command::new("sh");
    which.args(["-c", "command -v valkey-server || command -v redis-server"]);
    let engine = which.output().unwrap();
    let engine = String::from_utf8(engine.stdout).unwrap();
    fs::remove_file(folder.path().join("herodb")).unwrap();
    std::os::unix::fs::symlink(engine.trim(), folder.path().join("herodb")).unwrap();
    make();
    let made = status(&world, &id).await;
    assert!(is_good(&made), "{made}");
    assert!(made["driver"].as_str().unwrap().starts_with("herodb "), "{made}");
    assert_eq!(Client::with(&made, PASSWORD).ask(&["PING"]), "+PONG");
    databases(&world).delete(&id).await.unwrap();
    assert_gone(&world);
}

#[tokio::test]
async fn without_an_engine_it_says_what_to_install_and_leaves_nothing() {
    let world = World::new().await;
    let child = child(&world, WorkloadKind::Herodb, "1/demo/db", &spec("64MiB"), false);
    // In a mount namespace of its own there are no engines.
    let hide = "for p in /usr/bin/redis-server /usr/bin/valkey-server; do \
                [ ! -e $p ] || mount --bind /dev/null $p; done; exec \"$@\"";
    let mut hidden = Command::new("unshare");
    hidden.args(["--mount", "sh", "-ec", hide, "sh"]).arg(child.get_program());
    hidden.args(child.get_args());
    for (name, value) in child.get_envs() {
        hidden.env(name, value.unwrap());
    }
    let done = hidden.output().unwrap();
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(!done.status.success(), "{said}");
    for part in ["MissingTool", "apt-get install redis-server"] {
        assert!(said.contains(part), "{said}");
    }
    assert_gone(&world);
}
