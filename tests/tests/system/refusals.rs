//! Bad input: each with its own code, a message that says what to do, and nothing changed.

use std::path::Path;
use std::process::Command;

use rhizome_tests::{System, command};
use serde_json::{Value, json};

use crate::image::busybox;

/// A document as `rhizome document` writes it.
fn document(system: &System, source: &str, name: &str) -> Value {
    let script = system.script("document.rhai", source);
    system.rhizome(&["document", &script, "--name", name]).ok().json()
}

fn sign(system: &System, document: &Value) -> Value {
    system.with_input(&["sign", "-"], &document.to_string()).ok().json()
}

#[track_caller]
fn refused(system: &System, envelope: &Value, word: &str) {
    let answer = system.with_input(&["submit", "-"], &envelope.to_string());
    answer.refused(3, word);
}

/// What can be seen from outside: deployments that live, and the kernel.
fn world(system: &System) -> (Value, rhizome_tests::Kernel, Value) {
    let deployments = system.rhizome(&["list"]).ok().json();
    let reserved = system.rhizome(&["node", "1"]).ok().json()["status"]["usage"].clone();
    (deployments, system.kernel(), reserved)
}

#[test]
fn envelopes_that_are_not_to_be_trusted() {
    let system = System::start();
    let before = world(&system);
    let good = document(&system, "output(\"ok\", 1);", "app");

    let mut tampered = sign(&system, &good);
    let mut other = good.clone();
    other["name"] = json!("other");
    tampered["payload"] = sign(&system, &other)["payload"].clone();
    refused(&system, &tampered, "bad_signature");

    let mut tampered = sign(&system, &good);
    let sig = tampered["signatures"][0]["sig"].as_str().unwrap().to_owned();
    let first = if sig.starts_with('A') { 'B' } else { 'A' };
    tampered["signatures"][0]["sig"] = json!(format!("{first}{}", &sig[1..]));
    refused(&system, &tampered, "bad_signature");

    let mut two = sign(&system, &good);
    let mut second = two["signatures"][0].clone();
    second["keyid"] = json!("00".repeat(32));
    two["signatures"].as_array_mut().unwrap().push(second);
    refused(&system, &two, "bad_signature");

    for (field, value, word) in [
        ("account", json!(4711), "unknown_account"),
        ("network", json!("main"), "wrong_network"),
        ("expires", json!(1_000_000_000), "expired"),
        ("not_before", json!(good["expires"].as_i64().unwrap() - 10), "not_yet_valid"),
        ("name", json!("../escape"), "invalid_document"),
        ("colour", json!("red"), "invalid_document"),
        ("placement", json!({ "nodes": [99] }), "wrong_node"),
    ] {
        let mut wrong = good.clone();
        wrong[field] = value;
        refused(&system, &sign(&system, &wrong), word);
    }
    let mut large = good.clone();
    large["script"] = json!("/".repeat(450 * 1024));
    refused(&system, &sign(&system, &large), "too_large");

    // An account that the ledger does not know, by the usual way.
    let key = system.state.join("stranger.key");
    let key = key.to_string_lossy();
    system.rhizome(&["--key", &key, "key", "new"]).ok();
    let script = system.script("ok.rhai", "output(\"ok\", 1);");
    system
        .rhizome(&["--key", &key, "deploy", &script, "--name", "app"])
        .refused(3, "unknown_account");

    assert_eq!(world(&system), before, "a refusal changes nothing");

    // The same envelope twice, and another one with a nonce that was used.
    let envelope = sign(&system, &good);
    system.with_input(&["submit", "-"], &envelope.to_string()).ok();
    refused(&system, &envelope, "replayed");
    let mut next = good;
    next["version"] = json!(2);
    refused(&system, &sign(&system, &next), "replayed");
    let mut old = document(&system, "output(\"ok\", 1);", "app");
    old["version"] = json!(1);
    refused(&system, &sign(&system, &old), "stale_version");
}

/// Straight to the node, past the coordinator: it believes nobody.
#[test]
fn the_node_itself_refuses_too() {
    let system = System::start();
    let node = std::fs::read(system.state.join("node-1/node.json")).unwrap();
    let node: Value = serde_json::from_slice(&node).unwrap();
    let url = format!("http://{}", node["listen"].as_str().unwrap());
    let direct = |envelope: &Value| {
        system.with_input(&["--coord", &url, "submit", "--detach", "-"], &envelope.to_string())
    };
    let good = document(&system, "output(\"ok\", 1);", "app");
    let mut tampered = sign(&system, &good);
    tampered["payload"] = sign(&system, &document(&system, "", "other"))["payload"].clone();
    direct(&tampered).refused(3, "bad_signature");
    for (field, value, word) in [
        ("account", json!(4711), "unknown_account"),
        ("account", json!(2), "unauthorised"),
        ("network", json!("test"), "wrong_network"),
        ("expires", json!(1_000_000_000), "expired"),
        ("not_before", json!(good["expires"].as_i64().unwrap() - 10), "not_yet_valid"),
        ("placement", json!({ "nodes": [2] }), "wrong_node"),
        ("script", json!("let = 1"), "script_syntax_error"),
        ("script", json!("volume(\"v\", #{ size: \"100TiB\" });"), "insufficient_capacity"),
    ] {
        let mut wrong = good.clone();
        wrong[field] = value;
        direct(&sign(&system, &wrong)).refused(3, word);
    }
    assert_eq!(system.rhizome(&["list"]).ok().json(), json!([]));

    // What was deleted does not come back because somebody kept the envelope.
    let envelope = sign(&system, &good);
    system.with_input(&["submit", "-"], &envelope.to_string()).ok();
    system.rhizome(&["delete", "app"]).ok();
    direct(&envelope).refused(3, "replayed");

    // Nor does one that is overtaken by its own end.
    let late = sign(&system, &document(&system, "output(\"ok\", 1);", "late"));
    let mut end = good;
    for field in ["script", "params", "placement", "policy"] {
        end.as_object_mut().unwrap().remove(field);
    }
    end["name"] = json!("late");
    end["nonce"] = json!("0123456789abcdef0123");
    direct(&sign(&system, &end)).refused(1, "not_found");
    direct(&late).refused(3, "stale_version");
    let audit = std::fs::read_to_string(system.state.join("node-1/audit.log")).unwrap();
    for word in ["bad_signature", "wrong_node", "replayed", "\"what\":\"delete\""] {
        assert!(audit.contains(word), "{word} is not in the audit log:\n{audit}");
    }
}

#[test]
fn scripts_that_ask_for_too_much_or_for_nonsense() {
    let system = System::start();
    let before = world(&system);
    let image = busybox(&system.state);
    for (name, source, word) in [
        ("syntax", "let = 1;".to_owned(), "script_syntax_error"),
        ("loop", "loop { }".to_owned(), "script_limit"),
        ("string", "let s = \"x\"; loop { s += s; }".to_owned(), "script_limit"),
        ("array", "let a = [1]; loop { a += a; }".to_owned(), "script_limit"),
        ("deep", "fn f(n) { f(n + 1) } f(0);".to_owned(), "script_limit"),
        (
            "many",
            "for i in 0..10000 { volume(`v-${i}`, #{ size: \"1MiB\" }); }".to_owned(),
            "script_limit",
        ),
        ("unknown", "machin(\"m\", #{});".to_owned(), "script_invalid"),
        ("escape", "volume(\"../x\", #{ size: \"1MiB\" });".to_owned(), "script_invalid"),
        ("field", "volume(\"v\", #{ size: \"1MiB\", colour: 1 });".to_owned(), "invalid_spec"),
        ("large", "volume(\"v\", #{ size: \"100TiB\" });".to_owned(), "insufficient_capacity"),
        (
            "memory",
            format!("machine(\"m\", #{{ image: \"{image}\", memory: \"1000GiB\" }});"),
            "insufficient_capacity",
        ),
    ] {
        let script = system.script(&format!("{name}.rhai"), &source);
        system.rhizome(&["deploy", &script, "--name", name]).refused(3, word);
        if word == "insufficient_capacity" {
            continue;
        }
        // The supervisor says the same to who asks it without the command line's check.
        let mut unchecked = document(&system, "output(\"ok\", 1);", name);
        unchecked["script"] = json!(source);
        let envelope = sign(&system, &unchecked);
        let answer = system.with_input(&["submit", "-"], &envelope.to_string()).refused(3, word);
        let said = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(said.contains(".rhai:") || word == "script_limit", "{name}: no place in {said:?}");
    }
    let free = system.rhizome(&["node", "1"]).ok().json()["status"]["usage"].clone();
    assert_eq!(free, before.2, "a refusal reserves nothing");
    assert_eq!(system.kernel(), before.1, "a refusal makes nothing");
}

#[test]
fn images_that_are_not_what_they_should_be() {
    let system = System::start();
    let before = system.kernel();
    let folder = &system.state;
    std::fs::write(folder.join("corrupt.tar"), vec![0x5a; 4096]).unwrap();
    let escaping = r"
import io, sys, tarfile
def make(path, name, **fields):
    with tarfile.open(path, 'w') as tar:
        info = tarfile.TarInfo(name)
        for key, value in fields.items(): setattr(info, key, value)
        info.size = 4 if not fields else 0
        tar.addfile(info, io.BytesIO(b'evil'))
make(sys.argv[1] + '/dots.tar', '../../../../escaped-by-rhizome')
make(sys.argv[1] + '/absolute.tar', '/escaped-by-rhizome')
with tarfile.open(sys.argv[1] + '/link.tar', 'w') as tar:
    link = tarfile.TarInfo('out'); link.type = tarfile.SYMTYPE; link.linkname = '/'
    tar.addfile(link)
    file = tarfile.TarInfo('out/escaped-by-rhizome'); file.size = 4
    tar.addfile(file, io.BytesIO(b'evil'))
";
    let status = Command::new("python3").args(["-c", escaping]).arg(folder).status().unwrap();
    assert!(status.success());
    for (image, word) in [
        ("nowhere.tar", "image_not_found"),
        ("corrupt.tar", "image_corrupt"),
        ("dots.tar", "image_unsafe"),
        ("absolute.tar", "image_unsafe"),
        ("link.tar", "image_unsafe"),
    ] {
        let source =
            format!("machine(\"m\", #{{ image: \"file://{}/{image}\" }});", folder.display());
        let script = system.script("bad.rhai", &source);
        let name = image.split('.').next().unwrap();
        let answer = system.rhizome(&["deploy", &script, "--name", name]).refused(1, word);
        assert!(answer.json()["error"].as_str().unwrap().contains(image), "{}", answer.stdout);
        assert!(!Path::new("/escaped-by-rhizome").exists());
        assert_eq!(system.kernel(), before, "{image} left something");
    }
}

#[test]
fn a_machine_that_lacks_what_dev_needs() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let dev = |state: &Path, path: &Path, more: &[&str]| {
        let output = command()
            .args(["--json", "dev", "--state"])
            .arg(state)
            .args(more)
            .env("PATH", path)
            .output()
            .unwrap();
        rhizome_tests::Answer::from(output)
    };
    // A PATH with all of the programs but one.
    for (missing, package) in [("redis-server", "redis-server"), ("mkfs.btrfs", "btrfs-progs")] {
        let bin = folder.path().join(format!("without-{missing}"));
        std::fs::create_dir(&bin).unwrap();
        for from in ["/usr/bin", "/usr/sbin", "/bin", "/sbin"] {
            for entry in std::fs::read_dir(from).unwrap().flatten() {
                let link = bin.join(entry.file_name());
                if entry.file_name() != missing && !link.exists() {
                    std::os::unix::fs::symlink(entry.path(), link).unwrap();
                }
            }
        }
        let answer = dev(&state, &bin, &[]).refused(1, "missing_tool");
        assert!(answer.stdout.contains(&format!("apt-get install {package}")), "{}", answer.stdout);
    }
    let path = std::env::var("PATH").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    dev(&state, Path::new(&path), &["--coord-port", &port]).refused(1, "port_taken");
    dev(Path::new("/proc/rhizome"), Path::new(&path), &[]).refused(1, "state_not_writable");

    let running = System::start();
    dev(&running.state, Path::new(&path), &[]).refused(3, "conflict");
}
