//! Deploying, following, deleting, and what is done with resources, against a coord that remembers.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_identity::SigningKey;
use serde_json::{Value, json};

use crate::coord::{Answer, Coord};
use crate::harness::{User, outcome};

fn to_ready() -> Vec<Value> {
    vec![
        json!({ "event": "phase", "phase": "accepted" }),
        json!({ "event": "phase", "phase": "running" }),
        json!({ "event": "declared", "resource": "web", "kind": "machine", "line": 1 }),
        json!({ "event": "ready", "resource": "web", "kind": "machine",
                "status": { "address": "5d3::1" } }),
        json!({ "event": "output", "key": "url", "value": "http://x" }),
        json!({ "event": "phase", "phase": "ready", "outputs": { "url": "http://x" } }),
    ]
}

fn user(coord: &Coord) -> User {
    let user = User::with_key();
    user.write("rhizome.toml", &format!("coord = \"{}\"\nnetwork = \"dev\"\n", coord.url));
    user.write("a.rhai", "output(\"ok\", params.n);");
    user
}

const DEPLOY: [&str; 6] = ["deploy", "a.rhai", "--name", "demo", "--param", "n=1"];

#[test]
fn from_script_to_outputs() {
    let coord = Coord::start(to_ready());
    let user = user(&coord);
    let (code, mut summary) = user.json(&DEPLOY);
    assert_eq!(code, 0, "{summary}");
    assert!(summary["duration_ms"].as_u64().is_some());
    summary["duration_ms"] = json!(0);
    // The nonce is another each time, and so is this.
    let trace = summary.as_object_mut().unwrap().remove("trace").unwrap();
    assert_eq!(trace.as_str().map(str::len), Some(32), "{trace}");
    insta::assert_snapshot!(serde_json::to_string_pretty(&summary).unwrap());

    let (code, stdout, stderr) = user.run(&DEPLOY);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("machine web: ready at 5d3::1"), "{stdout}");
    assert!(stdout.ends_with("url = http://x\n"), "{stdout}");

    let memory = coord.memory();
    assert_eq!(memory.unsigned, Vec::<String>::new());
    let [first, second] = memory.documents.as_slice() else { panic!("two were submitted") };
    assert_eq!((&first["version"], &second["version"]), (&json!(1), &json!(2)));
    assert_eq!((&first["network"], &first["account"]), (&json!("dev"), &json!(1)));
    assert_eq!(
        (&first["params"], &first["placement"]),
        (&json!({ "n": 1 }), &json!({ "nodes": [1] }))
    );
    assert_ne!(first["nonce"], second["nonce"]);
}

#[test]
fn nothing_is_missed_and_nothing_comes_twice_when_the_connection_breaks() {
    let coord = Coord::start(to_ready());
    coord.memory().answers =
        [Answer::Cut(2), Answer::Away, Answer::Away, Answer::Cut(0), Answer::Cut(3)].into();
    let (code, stdout, stderr) = user(&coord).run(&DEPLOY);
    assert_eq!(code, 0, "{stderr}");
    for line in ["accepted", "running", "declared in line 1", "ready at", "output: url"] {
        assert_eq!(stdout.matches(line).count(), 1, "{line}: {stdout}");
    }
    // Three times away, each said once: two refusals in a row are one absence.
    assert_eq!(stderr.matches("the deployment goes on").count(), 3, "{stderr}");
    assert_eq!(stderr.matches("coord is back").count(), 3, "{stderr}");
}

#[test]
fn a_deployment_that_ends_badly() {
    for (phase, code, exit) in
        [("refused", "insufficient_capacity", 3), ("failed", "image_not_found", 1)]
    {
        let failure = json!({ "error": "why not", "code": code, "resource": "web" });
        let end = json!({ "event": "phase", "phase": phase, "failure": failure });
        let coord = Coord::start(vec![end]);
        let user = user(&coord);
        let (got, summary) = user.json(&DEPLOY);
        assert_eq!((got, &summary["phase"]), (exit, &json!(phase)));
        assert_eq!((&summary["error"], &summary["code"]), (&json!("why not"), &json!(code)));
        let (got, _, stderr) = user.run(&DEPLOY);
        assert_eq!(got, exit);
        assert!(stderr.contains("error: why not\nresource: web\ncode: "), "{stderr}");
    }
}

#[test]
fn secrets_go_to_their_node_only_and_appear_nowhere() {
    let coord = Coord::start(to_ready());
    let user = user(&coord);
    user.write("password", "hunter2");
    let mut deploy = user.rhizome(&DEPLOY);
    deploy.args(["--secret", "db=@password", "--secret", "key=-"]).write_stdin("from stdin");
    let (code, stdout, stderr) = outcome(&mut deploy);
    assert_eq!(code, 0, "{stderr}");
    let document = coord.memory().documents[0].clone();
    for hidden in ["hunter2", "from stdin"] {
        assert!(!format!("{document}{stdout}{stderr}").contains(hidden));
    }
    let sealed = |name: &str| document["secrets"][name]["1"].as_str().unwrap().to_owned();
    let open = |key: &SigningKey, name: &str| key.unseal(&format!("1/demo/{name}"), &sealed(name));
    assert_eq!(open(&coord.node, "db").unwrap().as_slice(), b"hunter2");
    assert_eq!(open(&coord.node, "key").unwrap().as_slice(), b"from stdin");
    assert!(open(&SigningKey::generate().unwrap(), "db").is_err());
}

#[test]
fn the_three_steps_of_deploy_one_by_one() {
    let coord = Coord::start(to_ready());
    let user = user(&coord);
    let (code, document, stderr) =
        user.run(&["document", "a.rhai", "--name", "demo", "--node", "1", "--param", "n=1"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let (_, envelope, _) = outcome(user.rhizome(&["sign", "-"]).write_stdin(document.as_str()));
    user.write("envelope.json", &envelope);
    // Handing over needs no key.
    let keyless = ["--key", "none", "--json", "submit", "envelope.json", "--detach"];
    let (code, stdout, stderr) = user.run(&keyless);
    assert_eq!(code, 0, "{stderr}");
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&summary["phase"], &summary["version"]), (&json!("pending"), &json!(1)));
    let given: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(coord.memory().documents, [given]);
    assert_eq!(user.run(&["--key", "none", "submit", "envelope.json"]).0, 2);
    assert_eq!(coord.memory().documents.len(), 1, "nothing is handed over that cannot be watched");
}

#[test]
fn a_key_without_an_account_is_told_what_to_do() {
    let coord = Coord::start(to_ready());
    coord.memory().has_account = false;
    let (code, error) = user(&coord).json(&DEPLOY);
    assert_eq!((code, &error["code"]), (3, &json!("unknown_account")));
    assert!(error["error"].as_str().unwrap().contains("rhizome account register"), "{error}");
}

#[test]
fn deleting() {
    let coord = Coord::start(to_ready());
    let user = user(&coord);
    assert_eq!(user.run(&["delete", "demo"]).0, 1, "there is none yet");
    assert_eq!(user.run(&DEPLOY).0, 0);
    coord.memory().script = vec![
        json!({ "event": "phase", "phase": "deleting" }),
        json!({ "event": "resource_deleted", "resource": "web", "kind": "machine" }),
        json!({ "event": "phase", "phase": "deleted" }),
    ];
    let (code, stdout, stderr) = user.run(&["delete", "1/demo"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("1/demo version 1: deleted after"), "{stdout}");
    let submissions = coord.memory().documents.len();
    let (code, summary) = user.json(&["delete", "demo"]);
    assert_eq!((code, &summary["phase"]), (0, &json!("deleted")));
    assert_eq!(coord.memory().documents.len(), submissions, "what is gone is not deleted again");
}

#[test]
fn a_command_inside_a_resource() {
    let coord = Coord::start(to_ready());
    let user = user(&coord);
    let (code, stdout, stderr) = user.run(&["exec", "demo/web", "--", "ls", "-l", "--json"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (7, "one\n", "two\n"));
    let (code, stdout, _) = user.run(&["logs", "1/demo/web"]);
    assert_eq!((code, stdout.as_str()), (0, "one\n"));
    let (code, _, stderr) = user.run(&["logs", "demo/absent"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("code: not_found"), "{stderr}");
    assert_eq!(coord.memory().unsigned, Vec::<String>::new());
}

#[test]
fn in_a_terminal_a_resource_has_one_line_that_lives() {
    let coord = Coord::start(to_ready());
    let user = user(&coord);
    let ours = format!("{} {}", env!("CARGO_BIN_EXE_rhizome"), DEPLOY.join(" "));
    // `script` gives it a terminal; the sandbox needs no more than the binary itself.
    let output = std::process::Command::new("script")
        .args(["-qec", &ours, "/dev/null"])
        .env("HOME", user.home.path())
        .env("TERM", "xterm")
        .current_dir(user.home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let screen = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{screen}");
    assert!(screen.contains("node 1  machine web ready at 5d3::1"), "{screen}");
    assert!(!screen.contains("declared in line"), "that is the plain form: {screen}");
    assert!(screen.trim_end().ends_with("url = http://x"), "{screen}");
}

#[test]
fn ctrl_c_leaves_the_deployment_alone_and_says_how_to_follow_it() {
    let coord = Coord::start(vec![json!({ "event": "phase", "phase": "accepted" })]);
    let user = user(&coord);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_rhizome"))
        .args(DEPLOY)
        .env_clear()
        .env("HOME", user.home.path())
        .current_dir(user.home.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("accepted")));
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("rhizome events 1/demo -f"), "{stderr}");
}
