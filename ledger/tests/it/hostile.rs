//! Input that nobody means well with: refused, and nothing is changed.

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Ledger, base64_of, error, new_account, new_node, now, stellar, x_auth};

#[tokio::test]
async fn two_registrations_of_one_key_at_once_make_one_account() {
    let ledger = Ledger::start().await;
    let key = rhizome_identity::SigningKey::from_seed([1; 32]);
    let body = new_account(&key, now());
    let all = futures_util::future::join_all(
        (0..8).map(|_| ledger.send(Method::POST, "/v1/accounts", None, &body)),
    )
    .await;
    let mut statuses: Vec<_> = all.iter().map(|(status, _)| *status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    assert_eq!(ledger.account(2).await.id, 2, "a refusal used up an id");
}

#[tokio::test]
async fn sql_is_text_like_any_other() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    ledger.farm(&owner, "farm").await;
    let evil = "x'; DROP TABLE nodes; --";
    let mut node = new_node(1, 1);
    node["serial_number"] = json!(evil);
    node["location"]["city"] = json!("$1 {} %s \" \\ 🌱");
    assert_eq!(ledger.send(Method::POST, "/v1/nodes", Some(&owner), &node).await.0, 201);
    let (_, shown) = ledger.get("/v1/nodes/1").await;
    assert_eq!((&shown["serial_number"], &shown["location"]), (&json!(evil), &node["location"]));
    for query in ["farm_name=%27%20OR%201=1--", "farm_name=%25%27"] {
        assert_eq!(ledger.get(&format!("/v1/farms?{query}")).await, (200, json!([])), "{query}");
    }
    assert_eq!(ledger.get("/v1/farms?farm_name=%00").await.0, 400);
    for query in ["node_id=1%20OR%201=1", "page=1;DROP", "online=true--", "size=1e9"] {
        assert_eq!(ledger.get(&format!("/v1/nodes?{query}")).await.0, 400, "{query}");
    }
}

/// PostgreSQL takes no NUL in a text, and nobody wants the others in a terminal.
#[tokio::test]
async fn control_characters_are_refused_everywhere() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    ledger.farm(&owner, "farm").await;
    for bad in ["a\u{0}b", "a\nb", "a\u{1b}[31m", "a\u{7f}", "a\u{85}b"] {
        let mut node = new_node(1, 1);
        node["serial_number"] = json!(bad);
        let answer = ledger.send(Method::POST, "/v1/nodes", Some(&owner), &node).await;
        assert_eq!(error(&answer).0, 400, "{bad:?}");
        let mut node = new_node(1, 1);
        node["interfaces"][0]["name"] = json!(bad);
        assert_eq!(ledger.send(Method::POST, "/v1/nodes", Some(&owner), &node).await.0, 400);
        let farm = json!({ "farm_name": bad, "twin_id": 1, "stellar_address": stellar() });
        assert_eq!(ledger.send(Method::POST, "/v1/farms", Some(&owner), &farm).await.0, 400);
        let reach = json!({ "relays": [bad] });
        assert_eq!(ledger.send(Method::PATCH, "/v1/accounts/1", Some(&owner), &reach).await.0, 400);
        let reach = json!({ "rmb_enc_key": bad });
        assert_eq!(ledger.send(Method::PATCH, "/v1/accounts/1", Some(&owner), &reach).await.0, 400);
    }
    assert_eq!(ledger.get("/v1/nodes").await, (200, json!([])));
}

#[tokio::test]
async fn huge_bodies_are_cut_off() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    let body = format!("{{\"farm_name\":\"{}\"}}", "x".repeat(4 << 20));
    let auth = x_auth(&owner.key, 1, now());
    let answer = ledger.call(Method::POST, "/v1/farms", Some(&auth), Some(body)).await;
    assert_eq!((error(&answer).0, &answer.1["code"]), (413, &json!("too_large")));
}

/// Whoever sends a body byte by byte is not waited for.
#[tokio::test]
async fn slow_clients_are_let_go() {
    let ledger = Ledger::start().await;
    let mut stream = tokio::net::TcpStream::connect(ledger.address).await.unwrap();
    stream
        .write_all(b"POST /v1/accounts HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        .await
        .unwrap();
    let mut answer = vec![0; 1024];
    let read = tokio::time::timeout(crate::harness::DEADLINE, stream.read(&mut answer));
    let read = read.await.expect("it waits for ever").unwrap();
    let text = String::from_utf8_lossy(&answer[..read]);
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    assert_eq!(ledger.account(1).await.id, 1, "others are served");
}

#[tokio::test]
async fn headers_cannot_be_injected() {
    let ledger = Ledger::start().await;
    let owner = ledger.account(1).await;
    ledger.farm(&owner, "farm").await;
    // What is asked for comes back in an error: in its body only, and there as JSON.
    let answer = ledger.get("/v1/farms?farm_id=1%0d%0aX-Evil:%201").await;
    assert!(error(&answer).1.contains("X-Evil") && answer.0 == 400);
    let good = x_auth(&owner.key, 1, now());
    for bad in [format!("{good} "), format!(" {good},{good}"), format!("{good}:"), "é:é".into()] {
        let answer = ledger.call(Method::POST, "/v1/farms", Some(&bad), Some("{}".into())).await;
        assert!(matches!(answer.0, 400 | 401), "{bad:?}: {}", answer.1);
    }
}

/// A signature that the curve's order makes into another one is refused.
#[tokio::test]
async fn malleable_signatures_are_refused() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    /// The order of the group, little-endian.
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let ledger = Ledger::start().await;
    let key = rhizome_identity::SigningKey::from_seed([1; 32]);
    let mut body = new_account(&key, now());
    let mut signature = STANDARD.decode(body["signature"].as_str().unwrap()).unwrap();
    let mut carry = 0;
    for (byte, add) in signature[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = sum as u8;
        carry = sum >> 8;
    }
    body["signature"] = json!(STANDARD.encode(signature));
    let answer = ledger.send(Method::POST, "/v1/accounts", None, &body).await;
    assert_eq!(error(&answer).0, 401);
    assert_eq!(ledger.get("/v1/accounts?twin_id=1").await.0, 404);
}

#[tokio::test]
async fn an_sr25519_account_works_as_with_v4() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let ledger = Ledger::start().await;
    let pair = schnorrkel::MiniSecretKey::from_bytes(&[5; 32])
        .unwrap()
        .expand_to_keypair(schnorrkel::ExpansionMode::Ed25519);
    let sign =
        |text: &str| STANDARD.encode(pair.sign_simple(b"substrate", text.as_bytes()).to_bytes());
    let (time, public_key) = (now(), STANDARD.encode(pair.public.to_bytes()));
    let body = json!({ "timestamp": time, "public_key": public_key,
        "signature": sign(&format!("{time}:{public_key}")) });
    let (status, account) = ledger.send(Method::POST, "/v1/accounts", None, &body).await;
    assert_eq!((status, &account["public_key"]), (201, &json!(public_key)));
    let challenge = format!("{}:1", now());
    let auth = format!("{}:{}", STANDARD.encode(&challenge), sign(&challenge));
    let farm = json!({ "farm_name": "farm", "twin_id": 1, "stellar_address": stellar() });
    let made = ledger.call(Method::POST, "/v1/farms", Some(&auth), Some(farm.to_string())).await;
    assert_eq!(made, (201, json!({ "farm_id": 1 })));
    let forged = format!("{}:{}", STANDARD.encode(&challenge), sign("else"));
    let refused =
        ledger.call(Method::POST, "/v1/farms", Some(&forged), Some(farm.to_string())).await;
    assert_eq!(refused.0, 401);
    assert_ne!(base64_of(&rhizome_identity::SigningKey::from_seed([5; 32])), public_key);
}
