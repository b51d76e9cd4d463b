//! A user whose key is in an ssh-agent, or who signs with `ssh-keygen`: end to end.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rhizome_tests::{Answer, System, command, eventually, tool};
use serde_json::{Value, json};

/// A real ssh-agent with one key. Dropping it ends it.
struct Agent {
    process: Child,
    socket: PathBuf,
    key: PathBuf,
}

impl Agent {
    fn start(system: &System) -> Self {
        let (socket, key) = (system.state.join("agent.sock"), system.state.join("id"));
        let made = ["-q", "-t", "ed25519", "-N", "", "-C", "me@home", "-f", &key.to_string_lossy()];
        tool("ssh-keygen", &made);
        let mut start = Command::new("ssh-agent");
        start.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null());
        let process = start.spawn().unwrap();
        eventually("ssh-agent listens", Duration::from_secs(10), || socket.exists().then_some(()));
        let agent = Self { process, socket, key };
        let mut add = Command::new("ssh-add");
        let added = add.arg("-q").arg(&agent.key).env("SSH_AUTH_SOCK", &agent.socket).status();
        assert!(added.unwrap().success());
        agent
    }

    /// A command of the agent's user.
    fn rhizome(&self, system: &System, key: &str, args: &[&str]) -> Answer {
        let mut run = command();
        run.env("SSH_AUTH_SOCK", &self.socket).args(["--json", "--state"]).arg(&system.state);
        run.args(["--key", key]).args(args).output().unwrap().into()
    }

    /// What `ssh-keygen -Y sign` makes of a file, in a file.
    fn sign(&self, namespace: &str, file: &str) -> String {
        let made = format!("{file}.sig");
        let _ = std::fs::remove_file(&made);
        let key = self.key.to_string_lossy();
        tool("ssh-keygen", &["-q", "-Y", "sign", "-n", namespace, "-f", &key, file]);
        made
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn an_agents_key_deploys_operates_and_deletes() {
    let system = System::start();
    let agent = Agent::start(&system);
    let run = |args: &[&str]| agent.rhizome(&system, "agent:me@home", args);
    let account = run(&["account", "register"]).ok().json();
    assert_eq!(run(&["key", "show"]).ok().json()["key"], account["key"]);
    let script =
        system.script("app.rhai", "volume(\"data\", #{ size: \"64MiB\" });\noutput(\"ok\", 1);");
    let deployed = run(&["deploy", &script, "--name", "app"]).ok().json();
    assert_eq!(deployed["phase"], "ready", "{deployed}");
    assert_eq!(system.kernel().volumes.len(), 1);
    run(&["snapshot", "app/data", "first"]).ok();
    assert_eq!(run(&["list"]).ok().json().as_array().unwrap().len(), 1);

    // The same key, by ssh-keygen: a second version.
    let document = run(&["document", &script, "--name", "app"]).ok().json();
    let file = system.script("document.json", &document.to_string());
    let pae =
        Command::new(rhizome_tests::binary()).args(["sign", "--pae", &file]).output().unwrap();
    assert!(pae.status.success());
    let pae_file = system.state.join("pae").to_string_lossy().into_owned();
    std::fs::write(&pae_file, &pae.stdout).unwrap();
    let signature = agent.sign("envelope@rhizome", &pae_file);
    let envelope = run(&["sign", "--ssh-signature", &signature, &file]).ok().json();
    let good = system.with_input(&["verify", "-"], &envelope.to_string()).ok().json();
    assert_eq!(good["signers"], json!([account["key"]]));
    let file_of = |envelope: &Value| system.script("envelope.json", &envelope.to_string());
    run(&["submit", &file_of(&envelope)]).ok();

    // One that was signed for something else is refused by us and, handed over by hand, by coord.
    let foreign = agent.sign("file", &pae_file);
    run(&["sign", "--ssh-signature", &foreign, &file]).refused(3, "bad_signature");
    let armored = std::fs::read_to_string(&foreign).unwrap();
    let base64: String = armored.lines().filter(|l| !l.starts_with("-----")).collect();
    let mut bad: Value = envelope;
    bad["signatures"][0]["sig"] = json!(base64);
    let refused = run(&["submit", &file_of(&bad)]);
    assert!(refused.stdout.contains("envelope@rhizome"), "{}", refused.stdout);
    refused.refused(3, "bad_signature");

    run(&["delete", "app"]).ok();
    assert_eq!(system.kernel().volumes.len(), 0);

    agent.rhizome(&system, "agent:nobody", &["list"]).refused(2, "no_such_key");
    let mut alone = command();
    alone.env_remove("SSH_AUTH_SOCK").args(["--json", "--state"]).arg(&system.state);
    let alone: Answer = alone.args(["--key", "agent:", "list"]).output().unwrap().into();
    alone.refused(4, "agent_unavailable");
    let mut agent = agent;
    agent.process.kill().unwrap();
    agent.process.wait().unwrap();
    agent.rhizome(&system, "agent:me@home", &["list"]).refused(4, "agent_unavailable");

    // The node of this machine says how it is.
    let mut status = command();
    status.args(["--json", "node", "--status", "--state"]).arg(system.state.join("node-1"));
    let status: Answer = status.output().unwrap().into();
    let status = status.ok().json();
    assert_eq!((&status["registered"]["node"], &status["problem"]), (&json!(1), &Value::Null));
    assert_eq!(status["waiting_reports"], 0);
}
