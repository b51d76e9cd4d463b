//! rhizome.toml < RHIZOME_* < flags, and the file that a running `rhizome dev` leaves.

use crate::harness::{User, outcome};

/// Whom `rhizome list` wanted to reach.
fn wanted(user: &User, env: Option<&str>, flag: Option<&str>) -> String {
    let mut command = user.rhizome(&["list"]);
    if let Some(env) = env {
        command.env("RHIZOME_COORD", env);
    }
    if let Some(flag) = flag {
        command.args(["--coord", flag]);
    }
    let (code, _, stderr) = outcome(&mut command);
    assert_eq!(code, 4, "{stderr}");
    stderr
}

#[test]
fn flags_beat_variables_beat_the_file() {
    let user = User::with_key();
    user.write(".config/rhizome/rhizome.toml", "coord = \"http://127.0.0.1:1\"\n");
    assert!(wanted(&user, None, None).contains("127.0.0.1:1"));
    user.write("rhizome.toml", "coord = \"http://127.0.0.2:1\"\n");
    assert!(wanted(&user, None, None).contains("127.0.0.2:1"), "the nearer file counts");
    assert!(wanted(&user, Some("http://127.0.0.3:1"), None).contains("127.0.0.3:1"));
    let both = wanted(&user, Some("http://127.0.0.3:1"), Some("http://127.0.0.4:1"));
    assert!(both.contains("127.0.0.4:1"), "{both}");
}

#[test]
fn an_unknown_setting_is_refused_with_those_that_exist() {
    let user = User::new();
    user.write("rhizome.toml", "cord = \"http://127.0.0.1:1\"\n");
    let (code, _, stderr) = user.run(&["list"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("'cord'") && stderr.contains("coord"), "{stderr}");
}

#[test]
fn home_is_known_in_the_file() {
    let user = User::new();
    user.write("rhizome.toml", "key = \"~/elsewhere/key\"\n");
    let (code, made) = user.json(&["key", "new"]);
    assert_eq!(code, 0);
    assert_eq!(made["path"], user.path("elsewhere/key").to_str().unwrap());
}

#[test]
fn without_coord_the_running_dev_is_asked() {
    let user = User::new();
    let (code, _, stderr) = user.run(&["list"]);
    assert_eq!(code, 4);
    assert!(
        stderr.contains("no coordinator: start `rhizome dev`, or give --coord URL"),
        "{stderr}"
    );
    let (_, made) = user.json(&["--key", "dev.key", "key", "new"]);
    let client = serde_json::json!({
        "coord": "http://127.0.0.5:1", "ledger": "http://127.0.0.5:2",
        "key": user.path("dev.key"), "network": "dev",
    });
    user.write(".local/share/rhizome/dev/client.json", &client.to_string());
    let (code, _, stderr) = user.run(&["list"]);
    assert!(code == 4 && stderr.contains("127.0.0.5:1"), "{stderr}");
    let (code, _, stderr) = user.run(&["account", "show"]);
    assert!(code == 4 && stderr.contains("127.0.0.5:2"), "{stderr}");
    assert_eq!(user.json(&["key", "show"]).1["key"], made["key"]);
    user.write("other/client.json", &client.to_string().replace("127.0.0.5", "127.0.0.6"));
    let (_, _, stderr) = user.run(&["--state", "other", "list"]);
    assert!(stderr.contains("127.0.0.6:1"), "{stderr}");
}
