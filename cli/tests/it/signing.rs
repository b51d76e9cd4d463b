//! `rhizome sign` and `rhizome verify`.

use serde_json::{Value, json};

use crate::harness::{User, WORDS_KEY, outcome};

fn document() -> String {
    json!({
        "account": 1, "name": "demo", "version": 1, "network": "dev", "script": "output(\"ok\", 1);",
        "placement": { "nodes": [1] }, "expires": 2_000_000_000, "nonce": "0123456789abcdef",
    })
    .to_string()
}

fn signed(user: &User) -> String {
    let (code, envelope, stderr) = outcome(user.rhizome(&["sign", "-"]).write_stdin(document()));
    assert_eq!((code, stderr.as_str()), (0, ""));
    envelope
}

fn verify(user: &User, envelope: &str) -> (i32, Value) {
    let mut command = user.rhizome(&["verify", "-", "--json"]);
    let (code, stdout, _) = outcome(command.write_stdin(envelope));
    (code, serde_json::from_str(&stdout).unwrap())
}

#[test]
fn what_is_signed_verifies_and_the_bytes_are_kept() {
    let user = User::with_key();
    let envelope = signed(&user);
    // Ed25519 signatures are deterministic: the same key and bytes give the same envelope.
    insta::assert_snapshot!(envelope);
    let (code, report) = verify(&user, &envelope);
    assert_eq!(code, 0);
    insta::assert_snapshot!(serde_json::to_string_pretty(&report).unwrap());

    let file = user.write("envelope.json", &envelope);
    let (code, stdout, stderr) = user.run(&["verify", file.to_str().unwrap()]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    insta::assert_snapshot!(stdout);
}

#[test]
fn tampering_with_payload_or_signature_is_found() {
    let user = User::with_key();
    let envelope: Value = serde_json::from_str(&signed(&user)).unwrap();

    let mut payload = envelope.clone();
    payload["payload"] = json!("e30=");
    let mut kind = envelope.clone();
    kind["payloadType"] = json!("application/vnd.rhizome.delete.v1+json");
    let mut signature = envelope;
    let sig = signature["signatures"][0]["sig"].as_str().unwrap();
    let first = if sig.starts_with('A') { "B" } else { "A" };
    signature["signatures"][0]["sig"] = json!(format!("{first}{}", &sig[1..]));
    for tampered in [payload, kind, signature] {
        let (code, report) = verify(&user, &tampered.to_string());
        assert_eq!((code, &report["good"]), (3, &json!(false)));
        assert_eq!(report["code"], "bad_signature");
        assert_eq!(report["signers"], json!([]));
    }
    let (code, report) = verify(&user, "{}");
    assert_eq!((code, &report["code"]), (3, &json!("bad_envelope")));
}

#[test]
fn two_signatures_and_one_of_them_bad() {
    let user = User::with_key();
    let second = user.path("second.key");
    let second = second.to_str().unwrap();
    let (_, made) = user.json(&["--key", second, "key", "new"]);
    let file = user.write("one.json", &signed(&user));
    let (code, both, _) = user.run(&["--key", second, "sign", "--add", file.to_str().unwrap()]);
    assert_eq!(code, 0);
    let (code, report) = verify(&user, &both);
    assert_eq!((code, &report["signers"]), (0, &json!([WORDS_KEY, made["key"]])));

    let mut bad: Value = serde_json::from_str(&both).unwrap();
    bad["signatures"][1]["sig"] = bad["signatures"][0]["sig"].clone();
    let (code, report) = verify(&user, &bad.to_string());
    assert_eq!(code, 3);
    assert!(report["error"].as_str().unwrap().contains("signature 2"), "{report}");
}

#[test]
fn any_payload_can_be_signed_when_its_type_is_said() {
    let user = User::with_key();
    let mut sign = user.rhizome(&["sign", "-", "--type", "application/x"]);
    let (code, envelope, _) = outcome(sign.write_stdin("not JSON"));
    assert_eq!(code, 0);
    let (code, report) = verify(&user, &envelope);
    assert_eq!((code, &report["document"]), (0, &Value::Null));

    assert_eq!(outcome(user.rhizome(&["sign", "-"]).write_stdin("not JSON")).0, 2);
    let (code, _, stderr) = outcome(user.rhizome(&["sign", "-"]).write_stdin(signed(&user)));
    assert!(code == 2 && stderr.contains("--add"), "{stderr}");
}

#[test]
fn a_document_that_will_be_refused_is_signed_with_a_warning() {
    let user = User::with_key();
    let bad = document().replace("\"demo\"", "\"../x\"");
    let (code, envelope, stderr) = outcome(user.rhizome(&["sign", "-"]).write_stdin(bad));
    assert_eq!(code, 0);
    assert!(stderr.contains("will be refused"), "{stderr}");
    let (code, report) = verify(&user, &envelope);
    assert_eq!((code, &report["document"]["valid"]), (0, &json!(false)));
}
