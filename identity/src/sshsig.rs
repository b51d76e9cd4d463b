//! SSHSIG: signatures that `ssh-keygen -Y sign`, an ssh-agent or a hardware token make (OpenSSH's
//! PROTOCOL.sshsig), over the same bytes that a raw Ed25519 signature is made over.
//!
//! Strict: one version, one namespace per use, key types `ssh-ed25519` and
//! `sk-ssh-ed25519@openssh.com`, nothing reserved, one way to write it. A token must have seen its
//! user touch it. Its counter is not kept: what is signed carries a nonce of its own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::KeyId;
use sha2::{Digest, Sha256};
use ssh_encoding::{Decode, Encode};
use ssh_key::public::{Ed25519PublicKey, KeyData, SkEd25519};
use ssh_key::{Algorithm, HashAlg, Signature, SshSig};

use crate::KeyError;
use crate::key::verify_bytes;

/// What a signature is for. One made for one of these is nothing for another.
pub mod namespace {
    /// DSSE envelopes: signed is their PAE.
    pub const ENVELOPE: &str = "envelope@rhizome";
    /// HTTP message signatures: signed is the signature base.
    pub const REQUEST: &str = "request@rhizome";
    /// Registering an account: signed is the ledger's challenge.
    pub const ACCOUNT: &str = "account@rhizome";
    /// The key that secrets are sealed by follows from this signature; it goes nowhere.
    pub const SEALING: &str = "sealing@rhizome";
}

const MAGIC: &[u8] = b"SSHSIG";
const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
/// Larger than any that we take: names and two keys.
const MAX_BYTES: usize = 1024;
/// A token's key for a web site, which has another application, must not sign for us.
const APPLICATION: &str = "ssh:";
const USER_PRESENT: u8 = 0x01;
/// One byte of flags and the counter, behind the signature.
const TRAILER: usize = 5;

/// Why an SSHSIG is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SshSigError {
    #[error("it is not an SSHSIG of version 1 in its one binary form")]
    Form,
    #[error(
        "it was made for '{found}', not for '{wanted}': sign with ssh-keygen -Y sign -n {wanted}"
    )]
    Namespace { found: String, wanted: &'static str },
    #[error(
        "it was made with a key of type {0}; ssh-ed25519 and sk-ssh-ed25519@openssh.com are taken"
    )]
    KeyType(String),
    #[error("it was made with the key {0}")]
    OtherKey(KeyId),
    #[error("the token's key is for '{0}'; one for ssh: is taken")]
    Application(String),
    #[error("nobody touched the token when it was made")]
    NotPresent,
    #[error("its key is one that anybody can sign for")]
    WeakKey,
    #[error("it does not fit what was signed")]
    Mismatch,
}

/// Whether these bytes are meant as an SSHSIG. A raw Ed25519 signature has 64 bytes, none of these
/// has so few.
pub fn is_sshsig(signature: &[u8]) -> bool {
    signature.len() != 64 && signature.starts_with(MAGIC)
}

/// Checks an SSHSIG strictly.
pub fn verify_sshsig(
    key: &KeyId,
    namespace: &'static str,
    message: &[u8],
    signature: &[u8],
) -> Result<(), SshSigError> {
    let parsed = parse(signature)?;
    if parsed.namespace() != namespace {
        let found = parsed.namespace().chars().filter(|c| !c.is_control()).take(60).collect();
        return Err(SshSigError::Namespace { found, wanted: namespace });
    }
    let sig = parsed.signature();
    let data = SshSig::signed_data(namespace, parsed.hash_alg(), message)
        .map_err(|_| SshSigError::Form)?;
    match (parsed.public_key(), sig.algorithm()) {
        (KeyData::Ed25519(found), Algorithm::Ed25519) => {
            same_key(found, key)?;
            check(key, &data, sig.as_bytes())
        }
        (KeyData::SkEd25519(token), Algorithm::SkEd25519) => {
            same_key(token.public_key(), key)?;
            check_token(token, key, &data, sig.as_bytes())
        }
        (other, _) => {
            let kind: String = other.algorithm().as_str().chars().take(60).collect();
            Err(SshSigError::KeyType(kind))
        }
    }
}

/// Checks a signature of either form: 64 raw bytes, or an SSHSIG of this namespace.
pub fn verify_either(
    key: &KeyId,
    namespace: &'static str,
    message: &[u8],
    signature: &[u8],
) -> Result<(), KeyError> {
    if is_sshsig(signature) {
        verify_sshsig(key, namespace, message, signature).map_err(|e| match e {
            SshSigError::WeakKey => KeyError::Weak(*key),
            other => KeyError::SshSig(other),
        })
    } else {
        verify_bytes(key, message, signature)
    }
}

/// The key inside an SSHSIG, for whoever got one without its envelope.
pub fn key_of_sshsig(signature: &[u8]) -> Result<KeyId, SshSigError> {
    match parse(signature)?.public_key() {
        KeyData::Ed25519(key) => Ok(KeyId(key.0)),
        KeyData::SkEd25519(token) => Ok(KeyId(token.public_key().0)),
        other => Err(SshSigError::KeyType(other.algorithm().as_str().chars().take(60).collect())),
    }
}

/// The binary form of what `ssh-keygen -Y sign` writes.
pub fn dearmor(text: &str) -> Result<Vec<u8>, SshSigError> {
    let text = text.trim().strip_prefix(BEGIN).and_then(|t| t.strip_suffix(END));
    let base64: String = text.ok_or(SshSigError::Form)?.split_whitespace().collect();
    let bytes = STANDARD.decode(base64).map_err(|_| SshSigError::Form)?;
    parse(&bytes).map(|_| bytes)
}

/// What has to be signed so that [`assemble`] makes an SSHSIG of it.
pub(crate) fn to_be_signed(namespace: &'static str, message: &[u8]) -> Vec<u8> {
    SshSig::signed_data(namespace, HashAlg::Sha512, message)
        .expect("our namespaces are not empty, and the rest fits in memory")
}

pub(crate) fn assemble(
    key: KeyData,
    namespace: &'static str,
    signature: Signature,
) -> Result<Vec<u8>, SshSigError> {
    let made = SshSig::new(key, namespace, HashAlg::Sha512, signature);
    encode(&made.map_err(|_| SshSigError::Form)?)
}

fn parse(signature: &[u8]) -> Result<SshSig, SshSigError> {
    if signature.len() > MAX_BYTES {
        return Err(SshSigError::Form);
    }
    let mut rest = signature;
    let parsed = SshSig::decode(&mut rest);
    let parsed = parsed.map_err(|_| match foreign_key_type(signature) {
        Some(kind) => SshSigError::KeyType(kind),
        None => SshSigError::Form,
    })?;
    let plain = rest.is_empty() && parsed.version() == 1 && parsed.reserved().is_empty();
    // What could be written in two ways would be two signatures.
    if plain && encode(&parsed)? == signature { Ok(parsed) } else { Err(SshSigError::Form) }
}

/// The type of the key in an SSHSIG, where it is another than ours: kinds of keys that are not compiled
/// in cannot be read, but can be named.
fn foreign_key_type(signature: &[u8]) -> Option<String> {
    // Magic, version, length of the key, length of its type.
    let rest = signature.strip_prefix(MAGIC)?.get(8..)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let kind = rest.get(..u32::from_be_bytes(*length) as usize)?;
    let kind = String::from_utf8(kind.to_vec()).ok()?;
    let plain = kind.len() <= 60 && kind.bytes().all(|b| b.is_ascii_graphic());
    let ours = [Algorithm::Ed25519.as_str(), Algorithm::SkEd25519.as_str()];
    (plain && !ours.contains(&kind.as_str())).then_some(kind)
}

fn encode(signature: &SshSig) -> Result<Vec<u8>, SshSigError> {
    let mut bytes = Vec::new();
    signature.encode(&mut bytes).map_err(|_| SshSigError::Form)?;
    Ok(bytes)
}

fn same_key(found: &Ed25519PublicKey, key: &KeyId) -> Result<(), SshSigError> {
    if found.0 == key.0 { Ok(()) } else { Err(SshSigError::OtherKey(KeyId(found.0))) }
}

fn check(key: &KeyId, data: &[u8], signature: &[u8]) -> Result<(), SshSigError> {
    verify_bytes(key, data, signature).map_err(|e| match e {
        KeyError::Weak(_) => SshSigError::WeakKey,
        _ => SshSigError::Mismatch,
    })
}

/// A token signs hashes: of the application, and of what SSH would have signed itself.
fn check_token(
    token: &SkEd25519,
    key: &KeyId,
    data: &[u8],
    signature: &[u8],
) -> Result<(), SshSigError> {
    let application = token.application();
    if !application.starts_with(APPLICATION) {
        let shown = application.chars().filter(|c| !c.is_control()).take(60).collect();
        return Err(SshSigError::Application(shown));
    }
    let at = signature.len().checked_sub(TRAILER).ok_or(SshSigError::Form)?;
    let (signature, trailer) = signature.split_at(at);
    if trailer[0] & USER_PRESENT == 0 {
        return Err(SshSigError::NotPresent);
    }
    let mut signed = Sha256::digest(application.as_bytes()).to_vec();
    signed.extend_from_slice(trailer);
    signed.extend_from_slice(&Sha256::digest(data));
    check(key, &signed, signature)
}
