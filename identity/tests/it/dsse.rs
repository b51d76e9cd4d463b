use rhizome_identity::{SigningKey, verify_signatures};
use rhizome_model::{Document, Envelope};

const THEIRS: &str = include_str!("../vectors/securesystemslib.json");
const PAYLOAD: &[u8] = include_bytes!("../vectors/securesystemslib-payload.json");

fn key() -> SigningKey {
    SigningKey::from_seed([7; 32])
}

#[test]
fn an_envelope_of_securesystemslib_verifies_here() {
    let envelope = Envelope::from_json(THEIRS.as_bytes()).unwrap();
    assert_eq!(verify_signatures(&envelope).unwrap(), [key().key_id()]);
    assert_eq!(envelope.payload, PAYLOAD);
    let document = Document::from_payload(&envelope.payload_type, &envelope.payload);
    assert_eq!(document.unwrap().unwrap().deployment_id().to_string(), "1/demo");
}

/// Ed25519 is deterministic: with the same key ours is the same envelope, so that what verifies
/// there is what we make.
#[test]
fn ours_is_theirs() {
    let ours = key().sign_envelope("application/vnd.rhizome.delete.v1+json", PAYLOAD);
    assert_eq!(ours, Envelope::from_json(THEIRS.as_bytes()).unwrap());
    let [ours, theirs]: [serde_json::Value; 2] =
        [&ours.to_json(), THEIRS].map(|json| serde_json::from_str(json).unwrap());
    assert_eq!(ours, theirs);
}

/// The vector of the standard's own protocol.md: its PAE, signed by us, under its type.
#[test]
fn the_standards_hello_world() {
    let envelope = key().sign_envelope("http://example.com/HelloWorld", b"hello world");
    assert_eq!(envelope.pae(), b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    assert!(envelope.to_json().contains(r#""payload":"aGVsbG8gd29ybGQ=""#));
    verify_signatures(&envelope).unwrap();
}
