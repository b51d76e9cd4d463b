//! Ed25519 keys: making them, signing with them, checking what others signed.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, VerifyingKey};
use rhizome_model::KeyId;
use zeroize::Zeroizing;

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
    #[error("{0} is not an Ed25519 public key, or one of those that anybody can sign for")]
    Weak(KeyId),
    #[error("the signature does not verify")]
    Mismatch,
    #[error("{what} {}: {source}", path.display())]
    File { what: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("others can read the key file {}; run: chmod 600 {}", path.display(), path.display())]
    Exposed { path: std::path::PathBuf },
    #[error(
        "{} belongs to another user (uid {owner}); a key file must be ours or root's",
        path.display()
    )]
    Foreign { path: std::path::PathBuf, owner: u32 },
    #[error("{} is not a key file: {why}", path.display())]
    Malformed { path: std::path::PathBuf, why: &'static str },
    #[error("{0}")]
    Import(String),
    #[error("the SSH signature is refused: {0}")]
    SshSig(#[from] crate::sshsig::SshSigError),
    #[error(transparent)]
    Agent(#[from] crate::agent::AgentError),
}

/// An Ed25519 private key. Clones share one copy, which is wiped when the last of them goes.
///
/// It has no `Display` and no `Serialize`, and its `Debug` shows the public key only.
#[derive(Clone)]
pub struct SigningKey(Arc<ed25519_dalek::SigningKey>);

impl SigningKey {
    /// A new key from the system's random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(KeyError::Random)?;
        Ok(Self::from_seed(*seed))
    }

    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        Self(Arc::new(ed25519_dalek::SigningKey::from_bytes(&seed)))
    }

    /// Reads a seed of 64 hexadecimal digits, with or without `0x`.
    pub fn from_hex_seed(text: &str) -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        let digits = text.trim();
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        hex::decode_to_slice(digits, seed.as_mut()).map_err(|_| {
            KeyError::Import("a seed is 64 hexadecimal digits, with or without 0x before".into())
        })?;
        Ok(Self::from_seed(*seed))
    }

    /// The seed as hexadecimal digits: the whole secret. For key files and for showing a user
    /// their own key on request.
    pub fn to_hex_seed(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new([0; 64]);
        hex::encode_to_slice(self.0.as_bytes(), text.as_mut())
            .expect("64 digits are room for 32 bytes");
        Zeroizing::new(String::from_utf8_lossy(text.as_ref()).into_owned())
    }

    pub fn key_id(&self) -> KeyId {
        KeyId(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        ed25519_dalek::Signer::sign(self.0.as_ref(), message).to_bytes()
    }

    /// A secret for a use: it follows from the key and the name of the use, and from nothing else, so
    /// it is the same again without being kept anywhere. 32 characters of a URL.
    pub fn derive_secret(&self, of: &str) -> Zeroizing<String> {
        let mut hash = blake3::Hasher::new_derive_key("rhizome 2026 generated secret v1");
        hash.update(self.0.as_bytes()).update(of.as_bytes());
        let mut bytes = Zeroizing::new([0; 24]);
        hash.finalize_xof().fill(bytes.as_mut());
        Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes))
    }

    /// The X25519 secret that belongs to this key.
    pub(crate) fn to_x25519(&self) -> x25519_dalek::StaticSecret {
        x25519_dalek::StaticSecret::from(self.0.to_scalar_bytes())
    }

    /// The 32 bytes that a Mycelium daemon's key file holds, so that it gets this key's address.
    pub fn mycelium_secret(&self) -> Zeroizing<[u8; 32]> {
        // Clamped as X25519 itself would, which is what a Mycelium daemon and others store.
        let mut bytes = Zeroizing::new(self.0.to_scalar_bytes());
        bytes[0] &= 248;
        bytes[31] &= 127;
        bytes[31] |= 64;
        bytes
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.key_id())
    }
}

/// The key behind an id, if anybody may use it: a point of the curve that is not of small order.
pub(crate) fn verifying_key(key: &KeyId) -> Result<VerifyingKey, KeyError> {
    match VerifyingKey::from_bytes(&key.0) {
        Ok(point) if !point.is_weak() => Ok(point),
        _ => Err(KeyError::Weak(*key)),
    }
}

/// Whether a public key may be used: asked before an account is made for it.
pub fn check_key(key: &KeyId) -> Result<(), KeyError> {
    verifying_key(key).map(|_| ())
}

/// Checks a signature strictly: malleable signatures and small-order points are refused.
pub fn verify_bytes(key: &KeyId, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
    let signature = Signature::from_slice(signature).map_err(|_| KeyError::Mismatch)?;
    verifying_key(key)?.verify_strict(message, &signature).map_err(|_| KeyError::Mismatch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_of_the_secret_is_shown() {
        let key = SigningKey::from_seed([7; 32]);
        let shown = format!("{key:?} {key:#?}");
        assert!(shown.contains(&key.key_id().to_string()));
        assert!(!shown.contains(&key.to_hex_seed()[..16]));
    }

    #[test]
    fn the_secret_is_wiped_when_it_goes() {
        fn wiped<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        wiped(SigningKey::from_seed([7; 32]).0.as_ref());
    }

    #[test]
    fn a_derived_secret_is_that_of_its_key_and_use() {
        let (a, b) = (SigningKey::from_seed([7; 32]), SigningKey::from_seed([8; 32]));
        let secret = a.derive_secret("1/demo/db");
        // Databases have it as their password: it must never change.
        assert_eq!(*secret, "8Mu6GmgkJtXvdXTSB3pjEAKSCu6OFN4l");
        assert_eq!(*a.derive_secret("1/demo/db"), *secret);
        assert_ne!(*a.derive_secret("1/demo/db2"), *secret);
        assert_ne!(*b.derive_secret("1/demo/db"), *secret);
    }

    #[test]
    fn hex_seeds_read_back() {
        let key = SigningKey::generate().unwrap();
        assert_eq!(SigningKey::from_hex_seed(&key.to_hex_seed()).unwrap().key_id(), key.key_id());
        let prefixed = format!("0x{}\n", *key.to_hex_seed());
        assert_eq!(SigningKey::from_hex_seed(&prefixed).unwrap().key_id(), key.key_id());
        assert!(SigningKey::from_hex_seed("0x12").is_err());
    }

    #[test]
    fn keys_that_anybody_can_sign_for_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        for weak in [identity, [0; 32]] {
            assert!(matches!(check_key(&KeyId(weak)), Err(KeyError::Weak(_))), "{weak:?}");
        }
        // R = identity, S = 0 passes for any message where checking is not strict.
        let mut forged = [0; 64];
        forged[0] = 1;
        assert!(verify_bytes(&KeyId(identity), b"anything", &forged).is_err());
    }

    #[test]
    fn a_malleable_signature_is_refused() {
        let key = SigningKey::from_seed([7; 32]);
        let mut sig = key.sign(b"m");
        // S + L, where L is the order of the group.
        let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
            .unwrap();
        let mut carry = 0u16;
        for (byte, add) in sig[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            *byte = sum as u8;
            carry = sum >> 8;
        }
        assert!(verify_bytes(&key.key_id(), b"m", &sig).is_err());
    }

    proptest! {
        #[test]
        fn a_signature_holds_for_its_message_and_no_other(seed: [u8; 32], message: Vec<u8>, other: Vec<u8>) {
            let key = SigningKey::from_seed(seed);
            let sig = key.sign(&message);
            prop_assert!(verify_bytes(&key.key_id(), &message, &sig).is_ok());
            prop_assert_eq!(verify_bytes(&key.key_id(), &other, &sig).is_ok(), message == other);
        }
    }
}
