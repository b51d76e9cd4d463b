use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_800_000_000;
const BODY: &[u8] = br#"{"command":["ls"]}"#;

fn key() -> SigningKey {
    SigningKey::from_seed([5; 32])
}

fn signed() -> HeaderMap {
    let headers = sign(&key(), &Method::POST, "/v1/exec", Some("a=1"), BODY, NOW).unwrap();
    HeaderMap::from_iter(headers)
}

fn check(
    verifier: &Verifier,
    headers: &HeaderMap,
    now: i64,
) -> Result<rhizome_model::KeyId, String> {
    verifier.verify(&Method::POST, "/v1/exec", Some("a=1"), headers, BODY, now).map_err(|f| {
        assert_eq!(f.code, rhizome_model::Code::Unauthenticated);
        f.message
    })
}

#[test]
fn a_signed_request_names_its_signer_once() {
    let verifier = Verifier::new();
    let headers = signed();
    assert_eq!(check(&verifier, &headers, NOW + 10), Ok(key().key_id()));
    assert!(check(&verifier, &headers, NOW + 11).unwrap_err().contains("made before"));
    assert!(check(&verifier, &signed(), NOW).is_ok(), "another nonce is another request");
}

#[test]
fn only_in_its_time() {
    for (at, passes) in [(-61, false), (-60, true), (60, true), (61, false)] {
        assert_eq!(check(&Verifier::new(), &signed(), NOW + at).is_ok(), passes, "{at}");
    }
}

#[test]
fn every_covered_part_counts() {
    let verifier = Verifier::new();
    let headers = signed();
    for (method, path, query, body) in [
        (Method::GET, "/v1/exec", Some("a=1"), BODY),
        (Method::POST, "/v1/exec2", Some("a=1"), BODY),
        (Method::POST, "/v1/exec", Some("a=2"), BODY),
        (Method::POST, "/v1/exec", None, BODY),
        (Method::POST, "/v1/exec", Some("a=1"), b"{}"),
    ] {
        assert!(verifier.verify(&method, path, query, &headers, body, NOW).is_err());
    }
    assert!(check(&verifier, &headers, NOW).is_ok(), "refused requests must not use up the nonce");
}

#[test]
fn a_digest_that_is_exchanged_with_the_body_does_not_help() {
    let mut headers = signed();
    headers.insert("content-digest", base::content_digest(b"{}").parse().unwrap());
    let result =
        Verifier::new().verify(&Method::POST, "/v1/exec", Some("a=1"), &headers, b"{}", NOW);
    assert!(result.unwrap_err().message.contains("does not fit"));
}

#[test]
fn headers_that_are_not_our_profile() {
    let good = signed();
    let input = good["signature-input"].to_str().unwrap().to_owned();
    for (from, to) in [
        (" \"content-digest\"", ""),
        ("\"@method\" \"@path\"", "\"@path\" \"@method\""),
        ("alg=\"ed25519\"", "alg=\"hmac-sha256\""),
        (";alg=\"ed25519\"", ""),
        ("nonce=\"", "nonce=\"!"),
        ("created=1", "created=+1"),
        ("created=1", "created=01"),
        ("keyid=\"", "keyid=\"0"),
        ("rhizome=", "=rhizome"),
        (";nonce", ";expires=1;nonce"),
        (";nonce", ";created=1;nonce"),
    ] {
        let mut headers = good.clone();
        let changed = input.replacen(from, to, 1);
        assert_ne!(changed, input, "{from}");
        headers.insert("signature-input", changed.parse().unwrap());
        assert!(check(&Verifier::new(), &headers, NOW).is_err(), "{from} -> {to}");
    }
    for name in ["signature", "signature-input", "content-digest"] {
        let mut headers = good.clone();
        let value = headers.remove(name).unwrap();
        assert!(check(&Verifier::new(), &headers, NOW).unwrap_err().contains(name));
        headers.append(name, value.clone());
        headers.append(name, value);
        assert!(check(&Verifier::new(), &headers, NOW).unwrap_err().contains("twice"));
    }
}

#[test]
fn the_clients_hook_signs_what_the_verifier_takes() {
    let headers = signer(key())(&Method::GET, "/v1/list", None, b"");
    let now = rhizome_service::clock::now_secs();
    let who = Verifier::new().verify(&Method::GET, "/v1/list", None, &headers, b"", now).unwrap();
    assert_eq!(who, key().key_id());
}

proptest! {
    #[test]
    fn whatever_character_of_a_header_is_changed_it_is_refused(
        which in 0..3usize,
        at: prop::sample::Index,
        to in b'!'..=b'~',
    ) {
        let mut headers = signed();
        let name = ["signature", "signature-input", "content-digest"][which];
        let mut value = headers[name].as_bytes().to_owned();
        let at = at.index(value.len());
        prop_assume!(value[at] != to);
        value[at] = to;
        headers.insert(name, HeaderValue::from_bytes(&value).unwrap());
        let verifier = Verifier::new();
        // The label is only a link between the two headers, so it must break alone.
        prop_assert!(check(&verifier, &headers, NOW).is_err());
    }

    #[test]
    fn any_request_verifies_as_it_was_signed(
        path in "/[a-z0-9/%]{0,40}",
        query in prop::option::of("[a-z0-9=&%]{0,40}"),
        body: Vec<u8>,
    ) {
        let headers = sign(&key(), &Method::PATCH, &path, query.as_deref(), &body, NOW).unwrap();
        let headers = HeaderMap::from_iter(headers);
        let who = Verifier::new().verify(&Method::PATCH, &path, query.as_deref(), &headers, &body, NOW);
        prop_assert_eq!(who, Ok(key().key_id()));
    }
}
