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
    document_for(1, account, name)
}

fn document_for(node: u64, account: &Value, name: &str) -> String {
    json!({
        "account": account, "name": name, "version": 1, "network": "dev",
        "script": "output(\"ok\", 1);", "placement": { "nodes": [node] },
        "expires": rhizome_service::clock::now_secs() + 600,
        "nonce": format!("{:032x}", fastrand::u128(..)),
    })
    .to_string()
}

/// What the node itself says to an envelope, with no coordinator between.
fn ask_node(system: &System, key: &str, document: &str) -> Option<Code> {
    ask(1, system, key, document)
}

fn ask(node: u64, system: &System, key: &str, document: &str) -> Option<Code> {
    let signed = system.with_input(&["--key", key, "sign", "-"], document).ok();
    // They register side by side: who is first is node 1.
    let read = |folder: u64| -> Option<Value> {
        let file = std::fs::read(system.state.join(format!("node-{folder}/node.json"))).ok()?;
        serde_json::from_slice(&file).ok()
    };
    let node = (1..=2).find_map(|n| read(n).filter(|file| file["facts"]["id"] == node)).unwrap();
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
    let plan = as_tenant(&["plan", &large, "--node", "1", "--name", "large"]);
    plan.refused(1, "not_granted");
    deploy(&small, "third").refused(3, "not_granted");
    as_tenant(&["delete", "granted"]).ok();
    deploy(&small, "third").ok();
}

/// A grant of a farm counts once, wherever its nodes are: for versions, for what a script declares
/// where no plan could see it, and for resizes.
#[test]
fn a_grant_of_a_farm_counts_over_all_its_nodes() {
    let system = System::start_with(&["--nodes", "2"]);
    let tenant = system.state.join("tenant.key").to_string_lossy().into_owned();
    let as_tenant = |args: &[&str]| system.rhizome(&[&["--key", &tenant], args].concat());
    as_tenant(&["key", "new"]).ok();
    let account = as_tenant(&["account", "register"]).ok().json()["id"].as_u64().unwrap();
    let volume = system.script("volume.rhai", "volume(\"data\", #{ size: \"64MiB\" });");
    let later = system.script(
        "later.rhai",
        "let a = volume(\"a\", #{ size: \"8MiB\" });
         if a.used >= 0 { volume(\"b\", #{ size: \"64MiB\" }); }",
    );
    let deploy = |script: &str, name: &str, node: &str| {
        as_tenant(&["deploy", script, "--node", node, "--name", name])
    };
    system.rhizome(&["farm", "close", "devfarm"]).ok();
    // The nodes themselves know it, not only coord.
    for node in [1, 2] {
        let mut n = 0;
        eventually("the farm is closed to others", REVOKED_WITHIN, || {
            n += 1;
            let document = document_for(node, &json!(account), &format!("closed-{node}-{n}"));
            std::thread::sleep(Duration::from_millis(300));
            (ask(node, &system, &tenant, &document) == Some(Code::NotGranted)).then_some(())
        });
    }
    let grant = |more: &[&str]| {
        let farm = ["grant", "give", &account.to_string(), "--farm", "devfarm", "--cpu", "1"];
        system.rhizome(&[&farm[..], &["--memory", "1GiB"], more].concat()).ok();
    };
    grant(&["--disk", "160MiB"]);
    for (name, node) in [("one", "1"), ("two", "2")] {
        eventually("the grant is known", REVOKED_WITHIN, || {
            let answer = deploy(&volume, name, node);
            if answer.code != 0 {
                answer.refused(3, "not_granted");
                return None;
            }
            Some(())
        });
    }

    // 32 MiB are left, of the whole farm.
    for node in ["1", "2"] {
        deploy(&volume, "three", node).refused(3, "not_granted");
        let unseen = deploy(&later, &format!("unseen-{node}"), node);
        assert_eq!(unseen.code, 3, "{}", unseen.stdout);
        assert!(unseen.stdout.contains("not_granted"), "{}", unseen.stdout);
    }
    let resize = |size: &str| as_tenant(&["resize", "one/data", "--size", size]);
    let refused = resize("128MiB");
    assert!(refused.code != 0 && refused.stdout.contains("not_granted"), "{}", refused.stdout);
    eventually("what went back with the failed versions can be used", REVOKED_WITHIN, || {
        (resize("96MiB").code == 0).then_some(())
    });
    assert_ne!(deploy(&later, "rest", "2").code, 0, "nothing is left");

    // Of this node alone: it needs nobody's word, and takes nothing of the farm's.
    grant(&["--disk", "64MiB", "--node", "2"]);
    eventually("the node's own grant is known", REVOKED_WITHIN, || {
        (deploy(&volume, "three", "2").code == 0).then_some(())
    });
    deploy(&volume, "four", "1").refused(3, "not_granted");

    // What is given up here can be used there soon.
    as_tenant(&["delete", "two"]).ok();
    eventually("what node 2 gave up is node 1's to use", REVOKED_WITHIN, || {
        (deploy(&volume, "four", "1").code == 0).then_some(())
    });
    assert!(system.kernel().volumes.len() >= 3);
}
