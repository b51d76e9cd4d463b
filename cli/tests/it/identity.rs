//! `rhizome node identity` and `rhizome node --status`, with a TPM in software.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{User, outcome};

/// swtpm, with a state of its own. Dropping it ends it.
struct Chip {
    process: Child,
    tcti: String,
}

impl Chip {
    fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        // tpm2-tools look for the second one at this name.
        let (socket, control) = (dir.join("chip"), dir.join("chip.ctrl"));
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear,not-need-init", "--tpmstate"])
            .arg(format!("dir={}", dir.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !(socket.exists() && control.exists()) {
            assert!(Instant::now() < deadline, "swtpm did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, tcti: format!("swtpm:path={}", socket.display()) }
    }
}

impl Drop for Chip {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const PASSPHRASE: &str = "correct horse battery";

/// Runs `rhizome --json node identity …`.
fn identity(user: &User, state: &Path, tpm: &str, args: &[&str], passphrase: &str) -> (i32, Value) {
    let state = state.to_string_lossy();
    let all = [&["--json", "--state", &state, "node", "identity"], args, &["--tpm", tpm]].concat();
    let (code, stdout, stderr) = outcome(user.rhizome(&all).env("RHIZOME_PASSPHRASE", passphrase));
    let value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}\n{stderr}"));
    (code, value)
}

/// A node's state folder with an identity, as the first versions kept it.
fn node(user: &User, name: &str) -> PathBuf {
    let state = user.path(name);
    std::fs::create_dir(&state).unwrap();
    let key = state.join("node.key").to_string_lossy().into_owned();
    assert_eq!(user.run(&["--key", &key, "key", "new"]).0, 0);
    state
}

#[test]
fn an_identity_moves_to_a_machine_with_a_tpm_and_opens_there_only() {
    let user = User::new();
    let (old, new) = (node(&user, "old"), user.path("new"));
    let (code, before) = identity(&user, &old, "off", &["show"], "");
    assert_eq!((code, &before["sealed"]), (0, &Value::Bool(false)));
    assert!(!old.join("node.key").exists(), "the old file stayed");
    let export = user.path("node.age").to_string_lossy().into_owned();
    let text = old.to_string_lossy().into_owned();
    let args =
        ["--state", &text, "node", "identity", "export", "--tpm", "off", "--output", &export];
    let (code, _, stderr) = outcome(user.rhizome(&args).env("RHIZOME_PASSPHRASE", PASSPHRASE));
    assert_eq!((code, stderr.as_str()), (0, ""));

    let chip = Chip::start(&user.path("chip"));
    let (code, said) =
        identity(&user, &new, &chip.tcti, &["import", &export], "wrong horse battery");
    assert_eq!((code, &said["code"]), (3, &Value::from("wrong_passphrase")));
    assert!(!new.join("node.identity").exists());
    let (code, said) = identity(&user, &new, &chip.tcti, &["import", &export], PASSPHRASE);
    assert_eq!(code, 0, "{said}");
    assert_eq!((&said["key"], &said["sealed"]), (&before["key"], &Value::Bool(true)));
    assert_eq!(identity(&user, &new, &chip.tcti, &["show"], "").1["key"], before["key"]);

    let lost = |tpm: &str, says: &str| {
        let (code, said) = identity(&user, &new, tpm, &["show"], "");
        assert_eq!((code, &said["code"]), (3, &Value::from("identity_lost")), "{said}");
        assert!(said["error"].as_str().unwrap().contains(says), "{said}");
    };
    lost("off", "shows us none");
    let other = Chip::start(&user.path("other"));
    lost(&other.tcti, "sealed by another one");

    // Another node's identity is not written over this one.
    let (code, said) =
        identity(&user, &node(&user, "third"), "off", &["import", &export], PASSPHRASE);
    assert_eq!((code, &said["code"]), (3, &Value::from("conflict")));
    // What cannot be used is moved aside, when we are told to.
    let (code, said) = identity(&user, &new, "off", &["import", &export], PASSPHRASE);
    assert_eq!((code, &said["code"]), (3, &Value::from("identity_lost")));
    let (code, said) = identity(&user, &new, "off", &["import", "--replace", &export], PASSPHRASE);
    assert_eq!((code, &said["key"], &said["sealed"]), (0, &before["key"], &Value::Bool(false)));
}

#[test]
fn a_node_that_does_not_run_has_no_status() {
    let user = User::new();
    let state = user.path("nothing").to_string_lossy().into_owned();
    let (code, said) = user.json(&["--state", &state, "node", "--status"]);
    assert_eq!((code, &said["code"]), (4, &Value::from("unavailable")));
    assert!(said["error"].as_str().unwrap().contains("no node runs here"), "{said}");
    let (code, said) = user.json(&["--state", &state, "node", "identity", "show", "--tpm", "off"]);
    assert_eq!((code, &said["code"]), (1, &Value::from("not_found")));
}
