//! A database from a signed script, and a container that uses it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rhizome_tests::{System, eventually};
use serde_json::Value;

use crate::image::busybox;

fn deploy(system: &System, script: &str, more: &[&str]) -> Value {
    let image = format!("image={}", busybox(&system.state));
    let args = [&["deploy", script, "--name", "visits", "--param", &image], more].concat();
    system.rhizome(&args).ok().json()
}

fn database(system: &System) -> Value {
    let shown = system.rhizome(&["show", "visits"]).ok().json();
    let resources = shown["tasks"][0]["resources"].as_array().unwrap();
    resources.iter().find(|r| r["name"] == "db").unwrap().clone()
}

/// Files below a folder that hold a text. What is in the pool is seen where it is mounted.
fn files_with(text: &str, folders: &[&Path]) -> Vec<String> {
    let mut grep = Command::new("grep");
    grep.args(["-rlaF", "-D", "skip", "--exclude=pool.img", "--", text]).args(folders);
    let found = grep.output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn a_container_uses_a_database_whose_password_nobody_sees() {
    let mut system = System::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/herodb.rhai");
    let script = script.to_string_lossy().into_owned();
    let image = format!("image={}", busybox(&system.state));

    let planned = system.rhizome(&["plan", &script, "--name", "visits", "--param", &image]);
    assert_eq!(planned.code, 10, "something would change");
    let plan = planned.stdout;
    assert!(plan.contains("\"db\"") && plan.contains("\"visit\""), "{plan}");
    let first = deploy(&system, &script, &[]);
    assert_eq!(
        (&first["phase"], &first["outputs"]["visits"]),
        (&"ready".into(), &1.into()),
        "{first}"
    );
    let second = deploy(&system, &script, &[]);
    assert_eq!(second["outputs"]["visits"], 2, "{second}");

    let shown = database(&system);
    let status = &shown["status"];
    assert_eq!(
        (&status["state"], &status["health"]["status"]),
        (&"running".into(), &"good".into())
    );
    assert_eq!(status["password"], "(secret)");
    assert_eq!(shown["spec"]["password"], "(secret of db)");
    println!("engine: {}", status["driver"]);
    let address = status["address"].as_str().unwrap();
    assert_eq!(first["outputs"]["address"], address);
    let queues = system.plain(&["runners"]).ok().stdout;
    assert!(queues.contains("herodb"), "it has runners of its own: {queues}");

    // The container was given it: that is where the oracle finds out what it is.
    let bundle = system.state.join("node-1/run/machines");
    let bundle = std::fs::read_dir(bundle).unwrap().flatten().next().unwrap().path();
    let config: Value =
        serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap()).unwrap();
    let env = config["process"]["env"].as_array().unwrap().iter().filter_map(Value::as_str);
    let url = env.clone().find_map(|e| e.strip_prefix("DATABASE_URL=")).unwrap();
    let password = url.strip_prefix("redis://:").unwrap().split('@').next().unwrap();
    assert_eq!(password.len(), 32);
    assert_eq!(url, format!("redis://:{password}@[{address}]:6379"));
    let said = |args: &[&str]| {
        let mut cli = Command::new("redis-cli");
        let done = cli.args(["-h", address, "--no-auth-warning"]).args(args).output().unwrap();
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    };
    assert_eq!(said(&["-a", password, "GET", "visits"]), "2");
    assert!(said(&["GET", "visits"]).contains("NOAUTH"));

    // Nobody else was: no answer of the API, no event, no log, nothing that the node keeps in Redis.
    for args in [
        &["show", "visits"][..],
        &["events", "visits"],
        &["logs", "visits/db"],
        &["logs", "visits/visit"],
        &["list"],
    ] {
        let said = system.rhizome(args).ok().stdout;
        assert!(!said.contains(password) && !said.contains("generated:"), "{args:?}: {said}");
    }
    for said in [plan, first.to_string(), second.to_string()] {
        assert!(!said.contains(password) && !said.contains("generated:"), "{said}");
    }
    let run = bundle.parent().unwrap().to_string_lossy().into_owned();
    let found = files_with(password, &[&system.state]);
    let elsewhere: Vec<_> = found.iter().filter(|f| !f.starts_with(&run)).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:#?}");
    assert!(!found.is_empty(), "the search finds what is there");
    dump_has_none(&system, password);

    // A killed engine is back with what it held.
    let pid = std::fs::read_to_string(
        system.state.join("node-1/run/herodbs").join(shown_file_name(&system)).join("pid"),
    )
    .unwrap();
    assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
    eventually("the engine is back", Duration::from_secs(20), || {
        (said(&["-a", password, "GET", "visits"]) == "2").then_some(())
    });
    eventually("its end is told", Duration::from_secs(10), || {
        let events = system.plain(&["events", "visits"]).ok().stdout;
        (events.contains("db") && events.contains("signal 9")).then_some(())
    });
    let (code, word) = (3, "data_loss");
    let without = system.script("without.rhai", "log(\"nothing\");");
    system.rhizome(&["deploy", &without, "--name", "visits"]).refused(code, word);

    system.rhizome(&["delete", "visits"]).ok();
    let left = system.kernel();
    assert!(
        left.namespaces.is_empty() && left.links.is_empty() && left.cgroups.is_empty(),
        "{left:#?}"
    );
    let pool = system.state.join("node-1/pool/herodbs");
    assert_eq!(std::fs::read_dir(pool).unwrap().count(), 0);
    system.down();
    assert!(system.kernel().is_empty(), "{:#?}", system.kernel());
}

fn shown_file_name(system: &System) -> String {
    let shown = system.rhizome(&["show", "visits"]).ok().json();
    format!("{}.db", shown["deployment"].as_str().unwrap().replace('/', "."))
}

/// What the node's own Redis holds, as it would write it to disk.
fn dump_has_none(system: &System, password: &str) {
    let socket = std::fs::read(system.state.join("node-1/node.json")).unwrap();
    let socket: Value = serde_json::from_slice(&socket).unwrap();
    let dump = system.state.join("dump-of-the-test.rdb");
    let done = Command::new("redis-cli")
        .args(["-s", socket["redis"].as_str().unwrap(), "--rdb"])
        .arg(&dump)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(std::fs::metadata(&dump).unwrap().len() > 0);
    assert_eq!(files_with(password, &[&dump]), Vec::<String>::new());
}

#[test]
fn a_given_password_changes_in_place() {
    let system = System::start();
    let image = busybox(&system.state);
    let script = system.script(
        "given.rhai",
        &format!(
            "let db = herodb(\"db\", #{{ size: \"64MiB\", memory: \"64MiB\", password: secret(\"db\") }});
             machine(\"m\", #{{ image: \"{image}\", memory: \"32MiB\", env: #{{ URL: db.url }} }});"
        ),
    );
    let deploy =
        |secret: &str| system.rhizome(&["deploy", &script, "--name", "visits", "--secret", secret]);
    deploy("db=short").refused(3, "invalid_spec");
    deploy("db=first-password-of-theirs").ok();
    let status = database(&system)["status"].clone();
    let address = status["address"].as_str().unwrap().to_owned();
    let said = |password: &str| {
        let mut cli = Command::new("redis-cli");
        cli.args(["-h", &address, "--no-auth-warning", "-a", password, "PING"]);
        String::from_utf8_lossy(&cli.output().unwrap().stdout).trim().to_owned()
    };
    assert_eq!(said("first-password-of-theirs"), "PONG");
    deploy("db=second-password-of-theirs").ok();
    assert_eq!(said("second-password-of-theirs"), "PONG");
    assert!(!said("first-password-of-theirs").contains("PONG"));
    let now = database(&system)["status"].clone();
    assert_eq!(now["started_at"], status["started_at"], "it was not started again");

    system.rhizome(&["resize", "visits/db", "--size", "128MiB"]).ok();
    let grown = database(&system)["status"].clone();
    assert_eq!(
        (&grown["size"], &grown["started_at"]),
        (&(128 << 20).into(), &status["started_at"])
    );
    system.rhizome(&["restart", "visits/db"]).ok();
    assert_eq!(said("second-password-of-theirs"), "PONG");
    let run = system.state.join("node-1/run/machines").to_string_lossy().into_owned();
    let found = files_with("second-password-of-theirs", &[&system.state]);
    assert!(found.iter().all(|f| f.starts_with(&run)) && !found.is_empty(), "{found:#?}");

    let clear = system.script(
        "clear.rhai",
        "herodb(\"db\", #{ size: \"64MiB\", password: \"written-in-clear\" });",
    );
    let refused = system.rhizome(&["deploy", &clear, "--name", "other"]).refused(3, "invalid_spec");
    let said = refused.json()["error"].to_string();
    assert!(said.contains("secret(") && !said.contains("written-in-clear"), "{said}");
    system.rhizome(&["delete", "visits"]).ok();
}
