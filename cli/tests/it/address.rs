//! `rhizome address`: no server, no key, no network.

use crate::harness::User;

const NODE: &str = "565:9683:6688:38f:1e8d:8639:bd7e:f416";
const KEY: &str = "345071da55e5dccefaaa440339415ef9f2663338a38f7da0df21be5ab4e055ef";
/// The vector of docs/network.md.
const ADDRESS: &str = "565:9683:6688:38f:4deb:f1d8:8cec:af90";

#[test]
fn an_address_is_known_before_anything_exists() {
    let user = User::new();
    let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDRQcdpV5dzO+qpEAzlBXvnyZjM4o499oN8hvlq04FXv";
    for node in [NODE, KEY, ssh] {
        let (code, stdout, stderr) = user.run(&["address", node, "1/demo/web"]);
        assert_eq!((code, stdout.trim(), stderr.as_str()), (0, ADDRESS, ""));
    }
    let (code, json) = user.json(&["address", KEY, "1/demo/web"]);
    assert_eq!(code, 0);
    assert_eq!(
        json,
        serde_json::json!({
            "resource": "1/demo/web",
            "address": ADDRESS,
            "node": NODE,
            "prefix": "565:9683:6688:38f::/64",
            "gateway": "565:9683:6688:38f::1",
        })
    );
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/network.md");
    assert!(std::fs::read_to_string(docs).unwrap().contains(ADDRESS));
}

#[test]
fn what_is_no_node_or_no_resource_is_refused() {
    let user = User::new();
    for args in [
        ["address", "rubbish", "1/demo/web"],
        ["address", "2001:db8::1", "1/demo/web"],
        ["address", NODE, "demo/web"],
        ["address", NODE, "1/demo/../web"],
        ["address", NODE, "1/demo/Web!"],
    ] {
        let (code, json) = user.json(&args);
        assert_eq!((code, &json["code"]), (2, &"bad_request".into()), "{args:?}: {json}");
    }
}
