//! The engines of databases: which is taken, and what becomes of one that does not start.

use std::fs;
use std::process::Command;

use rhizome_model::{Action, Code, WorkloadKind};

use super::client::{
    Client, PASSWORD, act, assert_gone, databases, ensure, is_good, spec, status, until,
};
use crate::crash::child;
use crate::world::{World, assert_code, id};

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
