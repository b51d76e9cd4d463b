//! Signatures of OpenSSH's own tools: `ssh-keygen -Y sign`, a real ssh-agent, and tokens, whose
//! signatures `ssh-keygen -Y verify` judges as we do.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rhizome_identity::agent::{AgentError, AgentKey};
use rhizome_identity::sshsig::{self, SshSigError, namespace, verify_sshsig};
use rhizome_identity::{
    SignatureError, SigningKey, UserKey, http_signature, verify_bytes, verify_signatures,
};
use rhizome_model::{Envelope, KeyId, Signature, pae};
use sha2::{Digest, Sha256};
use ssh_encoding::Encode;
use ssh_key::public::{Ed25519PublicKey, KeyData, SkEd25519};
use ssh_key::{Algorithm, HashAlg, SshSig};

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn keygen(dir: &Path, name: &str, kind: &str) -> PathBuf {
    let path = dir.join(name);
    run(Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-C", name, "-f"]).arg(&path));
    path
}

fn public(path: &Path) -> KeyId {
    let key = ssh_key::PublicKey::read_openssh_file(&path.with_extension("pub")).unwrap();
    KeyId(key.key_data().ed25519().unwrap().0)
}

/// What `ssh-keygen -Y sign` makes of a message.
fn ssh_sign(key: &Path, namespace: &str, message: &[u8], options: &[&str]) -> Vec<u8> {
    sshsig::dearmor(&ssh_sign_armored(key, namespace, message, options)).unwrap()
}

fn ssh_sign_armored(key: &Path, namespace: &str, message: &[u8], options: &[&str]) -> String {
    let file = key.with_extension("message");
    std::fs::write(&file, message).unwrap();
    let made = file.with_extension("message.sig");
    let _ = std::fs::remove_file(&made);
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(key).args(options).arg(&file);
    run(&mut command);
    std::fs::read_to_string(made).unwrap()
}

#[test]
fn what_ssh_keygen_signs_is_taken_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let key = keygen(dir.path(), "mine", "ed25519");
    let id = public(&key);
    let message = pae("application/x", b"payload");
    for options in [&[][..], &["-O", "hashalg=sha256"], &["-O", "hashalg=sha512"]] {
        let sig = ssh_sign(&key, namespace::ENVELOPE, &message, options);
        verify_sshsig(&id, namespace::ENVELOPE, &message, &sig).unwrap();
        let envelope = Envelope {
            payload_type: "application/x".into(),
            payload: b"payload".to_vec(),
            signatures: vec![Signature { keyid: id.to_string(), sig: sig.clone() }],
        };
        assert_eq!(verify_signatures(&envelope).unwrap(), [id]);
        // The same key does not sign twice by signing in two ways.
        let mut twice = envelope.clone();
        twice.signatures.push(twice.signatures[0].clone());
        assert!(matches!(verify_signatures(&twice), Err(SignatureError::Duplicate { .. })));

        let refuse = |namespace, message: &[u8], sig: &[u8]| {
            verify_sshsig(&id, namespace, message, sig).unwrap_err()
        };
        assert!(matches!(
            refuse(namespace::REQUEST, &message, &sig),
            SshSigError::Namespace { .. }
        ));
        assert_eq!(refuse(namespace::ENVELOPE, b"other", &sig), SshSigError::Mismatch);
        let other = verify_sshsig(&KeyId([9; 32]), namespace::ENVELOPE, &message, &sig);
        assert_eq!(other, Err(SshSigError::OtherKey(id)));
        for at in 0..sig.len() {
            let mut bad = sig.clone();
            bad[at] ^= 1;
            assert!(verify_sshsig(&id, namespace::ENVELOPE, &message, &bad).is_err(), "byte {at}");
            assert!(verify_sshsig(&id, namespace::ENVELOPE, &message, &sig[..at]).is_err());
        }
        let longer = [&sig[..], &[0]].concat();
        assert_eq!(refuse(namespace::ENVELOPE, &message, &longer), SshSigError::Form);
    }
}

#[test]
fn other_namespaces_and_kinds_of_keys_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let key = keygen(dir.path(), "mine", "ed25519");
    let sig = ssh_sign(&key, "file", b"m", &[]);
    let refused = verify_sshsig(&public(&key), namespace::ENVELOPE, b"m", &sig).unwrap_err();
    assert!(refused.to_string().contains("ssh-keygen -Y sign -n envelope@rhizome"), "{refused}");
    for kind in ["ecdsa", "rsa"] {
        let key = keygen(dir.path(), kind, kind);
        let armored = ssh_sign_armored(&key, namespace::ENVELOPE, b"m", &[]);
        let refused = sshsig::dearmor(&armored)
            .and_then(|sig| verify_sshsig(&KeyId([1; 32]), namespace::ENVELOPE, b"m", &sig))
            .unwrap_err();
        assert!(matches!(refused, SshSigError::KeyType(_)), "{kind}: {refused}");
    }
}

#[test]
fn what_is_no_sshsig() {
    let id = SigningKey::from_seed([1; 32]).key_id();
    for junk in
        [&b"SSHSIG"[..], b"SSHSIG\0\0\0\x01", &[b"SSHSIG".as_slice(), &[0xff; 200]].concat()]
    {
        let refused = verify_sshsig(&id, namespace::ENVELOPE, b"m", junk);
        assert_eq!(refused, Err(SshSigError::Form));
    }
    assert_eq!(sshsig::dearmor("-----BEGIN SSH SIGNATURE-----"), Err(SshSigError::Form));
}

/// A token in software: it signs as FIDO has it.
struct Token {
    key: SigningKey,
    application: &'static str,
}

impl Token {
    fn data(&self) -> KeyData {
        let key = Ed25519PublicKey(self.key.key_id().0);
        KeyData::SkEd25519(SkEd25519::new(key, self.application))
    }

    fn sign(&self, namespace: &str, message: &[u8], flags: u8) -> Vec<u8> {
        let data = SshSig::signed_data(namespace, HashAlg::Sha512, message).unwrap();
        let trailer = [flags, 0, 0, 0, 7];
        let mut signed = Sha256::digest(self.application.as_bytes()).to_vec();
        signed.extend_from_slice(&trailer);
        signed.extend_from_slice(&Sha256::digest(&data));
        let sig = [&self.key.sign(&signed)[..], &trailer].concat();
        let sig = ssh_key::Signature::new(Algorithm::SkEd25519, sig).unwrap();
        let sig = SshSig::new(self.data(), namespace, HashAlg::Sha512, sig).unwrap();
        let mut bytes = Vec::new();
        sig.encode(&mut bytes).unwrap();
        bytes
    }
}

/// Whether OpenSSH itself takes a token's signature.
fn openssh_takes(token: &Token, namespace: &str, message: &[u8], sig: &[u8]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let public = ssh_key::PublicKey::from(token.data()).to_openssh().unwrap();
    let allowed = dir.path().join("allowed");
    std::fs::write(&allowed, format!("me {public}\n")).unwrap();
    let armored = <SshSig as ssh_encoding::Decode>::decode(&mut &sig[..]).unwrap();
    let file = dir.path().join("sig");
    std::fs::write(&file, armored.to_pem(ssh_key::LineEnding::LF).unwrap()).unwrap();
    let mut child = Command::new("ssh-keygen")
        .args(["-q", "-Y", "verify", "-I", "me", "-n", namespace, "-f"])
        .arg(&allowed)
        .arg("-s")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(message).unwrap();
    child.wait().unwrap().success()
}

#[test]
fn tokens_sign_and_are_judged_as_openssh_judges_them() {
    let token = Token { key: SigningKey::from_seed([5; 32]), application: "ssh:" };
    let id = token.key.key_id();
    let good = token.sign(namespace::ENVELOPE, b"m", 1);
    assert!(openssh_takes(&token, namespace::ENVELOPE, b"m", &good));
    verify_sshsig(&id, namespace::ENVELOPE, b"m", &good).unwrap();

    assert!(!openssh_takes(&token, namespace::ENVELOPE, b"n", &good));
    let refuse = |sig: &[u8]| verify_sshsig(&id, namespace::ENVELOPE, b"m", sig).unwrap_err();
    let untouched = token.sign(namespace::ENVELOPE, b"m", 0);
    // OpenSSH leaves it to whoever calls it to ask for the touch.
    assert!(openssh_takes(&token, namespace::ENVELOPE, b"m", &untouched));
    assert_eq!(refuse(&untouched), SshSigError::NotPresent);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        refuse(&bad);
    }
    let web = Token { key: token.key, application: "https://example.com" };
    let web = web.sign(namespace::ENVELOPE, b"m", 1);
    assert!(matches!(refuse(&web), SshSigError::Application(_)));
}

/// A real ssh-agent. Dropping it ends it.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("agent.sock");
        let process = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        // The socket's name is there a moment before anybody listens on it.
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "ssh-agent did not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, socket }
    }

    fn ssh_add(&self, args: &[&str]) {
        run(Command::new("ssh-add").arg("-q").args(args).env("SSH_AUTH_SOCK", &self.socket));
    }

    fn add(&self, key: &Path) {
        std::fs::set_permissions(key, PermissionsExt::from_mode(0o600)).unwrap();
        self.ssh_add(&[&key.to_string_lossy()]);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn an_agent_signs_envelopes_requests_and_plain_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    let mine = keygen(dir.path(), "mine", "ed25519");
    agent.add(&mine);
    agent.add(&keygen(dir.path(), "curve", "ecdsa"));
    let key = AgentKey::find_at(&agent.socket, "mine").unwrap();
    assert_eq!(key.key_id(), public(&mine));
    assert_eq!(AgentKey::find_at(&agent.socket, "").unwrap(), key);
    let listed = run(Command::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", &agent.socket));
    let fingerprint = listed.lines().find(|l| l.contains("mine")).unwrap();
    let fingerprint = fingerprint.split(' ').nth(1).unwrap();
    assert_eq!(AgentKey::find_at(&agent.socket, fingerprint).unwrap(), key);

    // A raw signature of the agent over the PAE is one of Ed25519 over the PAE: both ways verify.
    let raw = key.sign(namespace::ENVELOPE, &pae("t", b"payload")).unwrap();
    verify_bytes(&key.key_id(), &pae("t", b"payload"), &raw).unwrap();
    let keyid = key.key_id().to_string();
    let envelope = Envelope {
        payload_type: "t".into(),
        payload: b"payload".to_vec(),
        signatures: vec![Signature { keyid, sig: raw }],
    };
    assert_eq!(verify_signatures(&envelope).unwrap(), [key.key_id()]);

    let user = UserKey::from(key.clone());
    let mut envelope = user.sign_envelope("t", b"payload").unwrap();
    assert!(sshsig::is_sshsig(&envelope.signatures[0].sig));
    SigningKey::from_seed([2; 32]).add_signature(&mut envelope);
    user.add_signature(&mut envelope).unwrap();
    let again = Envelope::from_json(envelope.to_json().as_bytes()).unwrap();
    assert_eq!(verify_signatures(&again).unwrap().len(), 2);

    let headers =
        http_signature::sign_by(&user, &http::Method::GET, "/v1/x", None, b"", 1000).unwrap();
    let who = http_signature::Verifier::new().verify(
        &http::Method::GET,
        "/v1/x",
        None,
        &http::HeaderMap::from_iter(headers),
        b"",
        1001,
    );
    assert_eq!(who, Ok(key.key_id()));
}

#[test]
fn agents_that_do_not_sign() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(dir.path());
    let find = |wanted| AgentKey::find_at(&agent.socket, wanted);
    assert!(find("").unwrap_err().to_string().contains("it has none"));
    let mine = keygen(dir.path(), "mine", "ed25519");
    agent.add(&mine);
    let error = find("other").unwrap_err().to_string();
    assert!(error.contains("no Ed25519 key 'other'") && error.contains("'mine'"), "{error}");
    let second = keygen(dir.path(), "second", "ed25519");
    agent.add(&second);
    assert!(matches!(find(""), Err(AgentError::Ambiguous { .. })));

    let key = find("mine").unwrap();
    agent.ssh_add(&["-d", &mine.with_extension("pub").to_string_lossy()]);
    let error = key.sign_sshsig(namespace::ENVELOPE, b"m").unwrap_err();
    assert!(matches!(error, AgentError::Refused { .. }), "{error}");
    let socket = agent.socket.clone();
    drop(agent);
    let error = key.sign_sshsig(namespace::ENVELOPE, b"m").unwrap_err();
    assert!(matches!(error, AgentError::Away { .. }), "{error}");
    assert!(matches!(AgentKey::find_at(&socket, ""), Err(AgentError::Away { .. })));
}

#[test]
fn requests_of_a_token_carry_an_sshsig() {
    let token = Token { key: SigningKey::from_seed([5; 32]), application: "ssh:" };
    // As the client would have it, but for the agent.
    let key = token.key.key_id();
    let digest = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
    let params = format!(
        r#"("@method" "@path" "@query" "content-digest");created=1000;nonce="0123456789";keyid="{key}";alg="sshsig""#
    );
    let base = format!(
        "\"@method\": GET\n\"@path\": /v1/x\n\"@query\": ?\n\"content-digest\": {digest}\n\"@signature-params\": {params}"
    );
    let verify = |sig: Vec<u8>, params: &str| {
        use base64::Engine as _;
        let sig = base64::engine::general_purpose::STANDARD.encode(sig);
        let mut headers = http::HeaderMap::new();
        headers.insert("content-digest", digest.parse().unwrap());
        headers.insert("signature-input", format!("rhizome={params}").parse().unwrap());
        headers.insert("signature", format!("rhizome=:{sig}:").parse().unwrap());
        http_signature::Verifier::new().verify(
            &http::Method::GET,
            "/v1/x",
            None,
            &headers,
            b"",
            1001,
        )
    };
    assert_eq!(verify(token.sign(namespace::REQUEST, base.as_bytes(), 1), &params), Ok(key));
    assert!(verify(token.sign(namespace::ENVELOPE, base.as_bytes(), 1), &params).is_err());
    assert!(verify(token.key.sign(base.as_bytes()).to_vec(), &params).is_err());
    let plain = params.replace("sshsig", "ed25519");
    let base = base.replace("sshsig", "ed25519");
    assert!(verify(token.sign(namespace::REQUEST, base.as_bytes(), 1), &plain).is_err());
    assert_eq!(verify(token.key.sign(base.as_bytes()).to_vec(), &plain), Ok(key));
}
