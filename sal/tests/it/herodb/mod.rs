//! Databases: real engines, asked over their addresses as clients do.

mod client;
mod engine;
mod full;
mod repair;

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::{Action, Code};
use serde_json::{Value, json};

use self::client::{
    Client, PASSWORD, act, assert_gone, databases, engine_pid, ensure, is_good, spec, status, until,
};
use crate::world::{World, assert_code, id};

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
    let error = assert_code(ensure(&world, &id, &small).await, Code::BelowUse);
    assert!(error.to_string().contains("remove keys first"), "{error}");
    let kept = databases(&world).keep(&id, &new).await.unwrap();
    assert!(kept.drifted.is_empty(), "{kept:?}");
    assert_eq!(client.ask(&["GET", "a"]), "1");

    // The new password also holds after a restart.
    let (restarted, _) = act(&world, &id, Action::Restart).await.unwrap();
    assert_eq!(Client::with(&restarted, other).ask(&["GET", "a"]), "1");
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
