//! What the identity manager does for other processes on its sockets, and for whom.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_identity::manager::{Config, Facts, FarmChoice, Manager, Overrides};
use rhizome_identity::{Purpose, SigningKey, seal, verify_for};
use rhizome_model::api::{
    GenerateRequest, NodeIdentity, NodeUsage, PurposeReply, PurposeRequest, UnsealReply,
    UnsealRequest, UsageReply, VerifyReply, VerifyRequest,
};
use rhizome_model::{AccountId, Capacity, Code, KeyId};
use rhizome_service::Client;
use tokio_util::sync::CancellationToken;

/// Nobody has this id; it was granted one purpose.
const GRANTED: u32 = 41_234;
const STRANGER: u32 = 41_235;

struct Running {
    dir: tempfile::TempDir,
    key: KeyId,
    client: Client,
    stop: CancellationToken,
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Others must be able to come as far as the shared socket.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let config = Config {
            socket: state.join("identity.sock"),
            state,
            state_pools: vec![],
            shared_socket: Some(dir.path().join("shared.sock")),
            grants: vec![format!("{GRANTED}:telemetry:sign+decrypt").parse().unwrap()],
            traces: vec![],
            // No ledger: the key works all the same.
            ledger: "http://127.0.0.1:1".into(),
            farm: FarmChoice::Name("farm".into()),
            supervisor_url: None,
            location: Default::default(),
            uptime_interval: Duration::from_secs(60),
            new_identity: true,
        };
        let facts = Arc::new(|| Facts::gather(&Overrides::default()));
        let client = Client::unix("identity manager", config.socket.clone()).unwrap();
        let manager = Manager::open(config, facts, None).unwrap();
        let (key, stop) = (manager.key_id(), CancellationToken::new());
        tokio::spawn(manager.run(stop.clone()));
        let running = Self { dir, key, client, stop };
        let up = async {
            while running.client.get::<NodeIdentity>("/v1/identity").await.is_err()
                || !running.shared().exists()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), up).await.expect("nobody serves");
        running
    }

    fn shared(&self) -> PathBuf {
        self.dir.path().join("shared.sock")
    }

    async fn ask(&self, path: &str, purpose: &str, data: &[u8], peer: Option<KeyId>) -> Answer {
        let request = PurposeRequest { purpose: purpose.into(), data: STANDARD.encode(data), peer };
        let reply = self.client.post::<PurposeReply>(path, &request).await;
        reply.map(|r| STANDARD.decode(r.data).unwrap()).map_err(|f| f.code)
    }
}

type Answer = Result<Vec<u8>, Code>;

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signs_and_encrypts_for_purposes_which_do_not_mix() {
    let node = Running::start().await;
    let sig = node.ask("/v1/sign", "telemetry", b"data", None).await.unwrap();
    let telemetry: Purpose = "telemetry".parse().unwrap();
    verify_for(&node.key, &telemetry, b"data", &sig).unwrap();
    let verify = async |purpose: &str| {
        let request = VerifyRequest {
            purpose: purpose.into(),
            data: STANDARD.encode(b"data"),
            signature: STANDARD.encode(&sig),
            key: node.key,
        };
        node.client.post::<VerifyReply>("/v1/verify", &request).await.unwrap().good
    };
    assert!(verify("telemetry").await && !verify("other").await);

    let closed = node.ask("/v1/encrypt", "backup", b"mine", None).await.unwrap();
    assert_eq!(node.ask("/v1/decrypt", "backup", &closed, None).await.unwrap(), b"mine");
    let other = node.ask("/v1/decrypt", "telemetry", &closed, None).await;
    assert_eq!(other, Err(Code::Unauthorised));
    // What was encrypted for a purpose is no secret of a deployment, and the other way round.
    let unseal = async |context: &str, sealed: String| {
        let request = UnsealRequest { context: context.into(), sealed };
        node.client.post::<UnsealReply>("/v1/unseal", &request).await.map_err(|f| f.code).err()
    };
    let sealed = STANDARD.encode(&closed);
    assert_eq!(unseal("purpose:backup", sealed.clone()).await, Some(Code::WrongPurpose));
    assert_eq!(unseal("1/demo/backup", sealed).await, Some(Code::Unauthorised));
    let secret = STANDARD.decode(seal(&node.key, "1/demo/x", b"secret").unwrap()).unwrap();
    let refused = node.ask("/v1/decrypt", "backup", &secret, None).await;
    assert_eq!(refused, Err(Code::Unauthorised));

    let generate = async |resource: &str| {
        let request = GenerateRequest { resource: resource.parse().unwrap() };
        let reply = node.client.post::<UnsealReply>("/v1/generate", &request).await.unwrap();
        String::from_utf8(STANDARD.decode(reply.secret).unwrap()).unwrap()
    };
    let password = generate("1/demo/db").await;
    assert_eq!((password.len(), generate("1/demo/db").await), (32, password.clone()));
    assert_ne!(generate("2/demo/db").await, password);

    let peer = SigningKey::generate().unwrap();
    let purpose: Purpose = "backup".parse().unwrap();
    let sent = node.ask("/v1/encrypt", "backup", b"hello", Some(peer.key_id())).await.unwrap();
    assert_eq!(**peer.ecdh_decrypt(&node.key, &purpose, &sent).unwrap(), *b"hello");
    let back = peer.ecdh_encrypt(&node.key, &purpose, b"hi").unwrap();
    let opened = node.ask("/v1/decrypt", "backup", &back, Some(peer.key_id())).await;
    assert_eq!(opened, Ok(b"hi".to_vec()));

    for (path, purpose, data, peer, code) in [
        ("/v1/sign", "UPPER", &b"x"[..], None, Code::BadRequest),
        ("/v1/sign", "ok", b"x", Some(peer.key_id()), Code::BadRequest),
        ("/v1/encrypt", "ok", b"x", Some(KeyId([0; 32])), Code::BadRequest),
        ("/v1/decrypt", "ok", b"", Some(peer.key_id()), Code::BadRequest),
        ("/v1/decrypt", "ok", b"junk", None, Code::BadRequest),
    ] {
        assert_eq!(node.ask(path, purpose, data, peer).await, Err(code), "{path} {purpose}");
    }
    let facts: Facts = node.client.get("/v1/hardware").await.unwrap();
    assert!(facts.resources.cru > 0);
}

/// What a registered node gets, and what the ledger says, is tested with a ledger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_no_ledger_knows_is_counted_nowhere() {
    let node = Running::start().await;
    let usage = NodeUsage {
        account: AccountId(1),
        number: 1,
        capacity: Capacity::default(),
        reserved: false,
    };
    let failure = node.client.post::<UsageReply>("/v1/usage", &usage).await.unwrap_err();
    assert_eq!(failure.code, Code::Unavailable);
    assert!(failure.message.contains("not registered yet"), "{failure}");
    let odd = serde_json::json!({ "account": 1, "number": -1, "capacity": usage.capacity });
    let failure = node.client.post::<UsageReply>("/v1/usage", &odd).await.unwrap_err();
    assert_eq!(failure.code, Code::BadRequest);
}

/// What another user gets from a socket: the HTTP status and the body.
fn as_user(uid: u32, socket: &Path, path: &str, body: &str) -> (u16, serde_json::Value) {
    const ASK: &str = r#"
import http.client, socket, sys
path, route, body = sys.argv[1:]
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
c = Unix("localhost")
c.request("POST" if body else "GET", route, body or None, {"content-type": "application/json"})
r = c.getresponse()
print(r.status, r.read().decode())
"#;
    let output = Command::new("setpriv")
        .args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups"])
        // Debian's own: whoever we become may not run any other.
        .args(["/usr/bin/python3", "-c", ASK])
        .arg(socket)
        .args([path, body])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (status, body) = text.split_once(' ').unwrap_or_else(|| {
        panic!("no answer: {}", String::from_utf8_lossy(&output.stderr));
    });
    (status.parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_users_get_what_was_granted_to_them_and_no_more() {
    let node = Running::start().await;
    let shared = node.shared();
    let ask = |uid, path: &str, purpose: &str| {
        let body = serde_json::json!({ "purpose": purpose, "data": "ZGF0YQ==" }).to_string();
        let (status, reply) = as_user(uid, &shared, path, &body);
        (status, reply["code"].as_str().unwrap_or_default().to_owned(), reply)
    };
    let (status, _, reply) = ask(GRANTED, "/v1/sign", "telemetry");
    assert_eq!(status, 200);
    let sig = STANDARD.decode(reply["data"].as_str().unwrap()).unwrap();
    verify_for(&node.key, &"telemetry".parse().unwrap(), b"data", &sig).unwrap();
    for (uid, path, purpose, code) in [
        (GRANTED, "/v1/sign", "other", "wrong_purpose"),
        (GRANTED, "/v1/encrypt", "telemetry", "wrong_purpose"),
        (STRANGER, "/v1/sign", "telemetry", "unauthorised"),
        (STRANGER, "/v1/decrypt", "telemetry", "unauthorised"),
    ] {
        let (status, said, _) = ask(uid, path, purpose);
        assert_eq!((status, said.as_str()), (403, code), "{uid} {path} {purpose}");
    }
    let sealed = seal(&node.key, "1/demo/x", b"secret").unwrap();
    let body = serde_json::json!({ "context": "1/demo/x", "sealed": sealed }).to_string();
    let (status, reply) = as_user(GRANTED, &shared, "/v1/unseal", &body);
    assert_eq!((status, reply["code"].as_str()), (403, Some("unauthorised")));
    let body = serde_json::json!({ "resource": "1/demo/db" }).to_string();
    let (status, reply) = as_user(GRANTED, &shared, "/v1/generate", &body);
    assert_eq!((status, reply["code"].as_str()), (403, Some("unauthorised")));
    let body = r#"{"account":1,"number":1,"capacity":{"cpu":1,"memory":1,"disk":1}}"#;
    for uid in [GRANTED, STRANGER] {
        let (status, reply) = as_user(uid, &shared, "/v1/usage", body);
        assert_eq!((status, reply["code"].as_str()), (403, Some("unauthorised")));
    }
    // Who the node is, is no secret.
    let (status, reply) = as_user(STRANGER, &shared, "/v1/identity", "");
    assert_eq!((status, reply["key"].as_str()), (200, Some(node.key.to_string().as_str())));
}
