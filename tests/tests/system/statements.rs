//! What the ledger signs, and what nodes make of it: with it, without it, and after a revocation.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_model::Code;
use rhizome_service::Client;
use rhizome_tests::{System, eventually};
use serde_json::{Value, json};

/// The promise: a revocation reaches a node that is online within this.
const REVOKED_WITHIN: Duration = Duration::from_secs(60);

/// Processes that stand still until this goes.
struct Frozen(Vec<u32>);

impl Frozen {
    fn new(pids: Vec<u32>) -> Self {
        assert!(!pids.is_empty(), "nothing to freeze");
        Self::signal(&pids, Signal::SIGSTOP);
        Self(pids)
    }

    fn signal(pids: &[u32], signal: Signal) {
        for pid in pids {
            kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        Self::signal(&self.0, Signal::SIGCONT);
    }
}

/// Made without coord, which may refuse the key before the node does.
fn document(account: &Value, name: &str) -> String {
    json!({
        "account": account, "name": name, "version": 1, "network": "dev",
        "script": "output(\"ok\", 1);", "placement": { "nodes": [1] },
        "expires": rhizome_service::clock::now_secs() + 600,
        "nonce": format!("{:032x}", fastrand::u128(..)),
    })
    .to_string()
}

/// What the node itself says to an envelope, with no coordinator between.
fn ask_node(system: &System, key: &str, document: &str) -> Option<Code> {
    let signed = system.with_input(&["--key", key, "sign", "-"], document).ok();
    let client = std::fs::read(system.state.join("node-1/node.json")).unwrap();
    let node: Value = serde_json::from_slice(&client).unwrap();
    let url = format!("http://{}", node["listen"].as_str().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let client = Client::new("the supervisor", &url).unwrap();
        client.post_bytes::<Value>("/v1/envelopes", signed.stdout.into_bytes()).await
    });
    answer.err().map(|failure| failure.code)
}

#[test]
fn a_revoked_key_is_refused_soon_and_a_known_account_served_without_the_ledger() {
    let system = System::start();
    let first = system.state.join("deployer.key").to_string_lossy().into_owned();
    let second = system.state.join("second.key").to_string_lossy().into_owned();
    let script = system.script("one.rhai", "output(\"ok\", 1);");
    let deploy = |name: &str| system.rhizome(&["deploy", &script, "--node", "1", "--name", name]);
    deploy("before").ok();
    let account =
        system.rhizome(&["document", &script, "--name", "x"]).ok().json()["account"].clone();

    // The ledger is there and says nothing; what it said is enough.
    let frozen = Frozen::new(system.pids("ledger"));
    deploy("without").ok();
    assert_eq!(ask_node(&system, &first, &document(&account, "alone")), None);
    drop(frozen);

    let keys = system.rhizome(&["key", "add", &second]).ok().json();
    let old = keys["keys"][0]["key"].as_str().unwrap().to_owned();
    let left = system.rhizome(&["--key", &second, "key", "revoke", &old]).ok().json();
    assert_eq!(left["keys"][0]["ended"]["how"], "revoked");
    let since = Instant::now();
    let mut n = 0;
    eventually("the node refuses the revoked key", REVOKED_WITHIN, || {
        n += 1;
        (ask_node(&system, &first, &document(&account, &format!("late-{n}")))
            == Some(Code::RevokedKey))
        .then_some(())
    });
    assert!(since.elapsed() < REVOKED_WITHIN, "{:?}", since.elapsed());
    assert_eq!(
        ask_node(&system, &second, &document(&account, "renewed")),
        None,
        "the other key still deploys"
    );
    let envelope =
        system.with_input(&["--key", &first, "sign", "-"], &document(&account, "later")).stdout;
    eventually("coord refuses it, too", REVOKED_WITHIN, || {
        let answer = system.with_input(&["submit", "-"], &envelope);
        (answer.code == 3 && answer.json()["code"] == "revoked_key").then_some(())
    });
    // The log of all this is whole.
    let ledger = system.state.join("ledger").to_string_lossy().into_owned();
    let verify = ["ledger", "--state", &ledger, "audit", "verify"];
    let verdict = system.plain(&verify);
    assert_eq!(verdict.code, 0, "{}{}", verdict.stdout, verdict.stderr);
}

#[test]
fn a_closed_farm_takes_only_what_it_has_granted() {
    let system = System::start();
    let tenant = system.state.join("tenant.key").to_string_lossy().into_owned();
    let as_tenant = |args: &[&str]| system.rhizome(&[&["--key", &tenant], args].concat());
    as_tenant(&["key", "new"]).ok();
    let account = as_tenant(&["account", "register"]).ok().json()["id"].to_string();
    let small = system.script("small.rhai", "volume(\"data\", #{ size: \"64MiB\" });");
    let nothing = system.script("nothing.rhai", "output(\"ok\", 1);");
    let large = system.script("large.rhai", "volume(\"data\", #{ size: \"256MiB\" });");
    let deploy =
        |script: &str, name: &str| as_tenant(&["deploy", script, "--node", "1", "--name", name]);
    deploy(&small, "open").ok();

    let closed = system.rhizome(&["farm", "close", "devfarm"]).ok().json();
    assert_eq!(closed["access"], "closed");
    eventually("the farm is closed to others", REVOKED_WITHIN, || {
        let answer = deploy(&nothing, "closed");
        (answer.code != 0).then(|| answer.refused(3, "not_granted"))
    });
    let own = ["deploy", &small, "--node", "1", "--name", "own"];
    system.rhizome(&own).ok();

    let give = [
        "grant", "give", &account, "--farm", "devfarm", "--cpu", "1", "--memory", "1GiB", "--disk",
        "160MiB",
    ];
    system.rhizome(&give).ok();
    eventually("the grant is known", REVOKED_WITHIN, || {
        let answer = deploy(&small, "granted");
        if answer.code != 0 {
            answer.refused(3, "not_granted");
            return None;
        }
        Some(())
    });
    // 64 MiB of `open` and 64 MiB of `granted` are in use.
    deploy(&large, "large").refused(3, "not_granted");
    deploy(&small, "third").refused(3, "not_granted");
    as_tenant(&["delete", "granted"]).ok();
    deploy(&small, "third").ok();
}
