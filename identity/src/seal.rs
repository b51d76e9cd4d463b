//! Secrets for one node, which nobody else on the way can read.
//!
//! ```text
//!   ephemeral X25519 ─┐
//!   node's X25519 ────┴─ Diffie-Hellman ─ HKDF-SHA256 ─▶ key, nonce ─ XChaCha20-Poly1305(context, secret)
//!
//!   sealed = base64( 0x01 ‖ ephemeral public key ‖ ciphertext and tag )
//! ```
//!
//! The ephemeral key is random, or follows from a key of the sealer and all that is sealed: then the
//! same secret is sealed to the same text again, so that one can see whether it has changed.
//!
//! The context says what the secret is for (`1/demo/secret-name`). It is authenticated: a sealed
//! secret that is moved to another deployment or another name does not open.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use rhizome_model::KeyId;
use sha2::Sha256;
use x25519_dalek::{PublicKey, SharedSecret, StaticSecret};
use zeroize::Zeroizing;

use crate::key::verifying_key;
use crate::{KeyError, SigningKey};

/// The largest secret that is sealed: an envelope with many of them must stay below its own limit.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;
const FORMAT: u8 = 1;
const LABEL: &[u8] = b"rhizome 2026 sealed secret v1";
const SEALING_KEY: &str = "rhizome 2026 sealing key v1";
const HEAD: usize = 33;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the secret has {0} bytes; at most {MAX_SECRET_BYTES} can be sealed")]
    TooLarge(usize),
    #[error("this is not a sealed secret of a form that we know")]
    Form,
    #[error(
        "the secret does not open: it was sealed for another node or for another use than '{context}', or it was changed"
    )]
    Closed { context: String },
}

/// Seals a secret to the holder of a key, for one use.
pub fn seal(to: &KeyId, context: &str, secret: &[u8]) -> Result<String, SealError> {
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(random.as_mut()).map_err(KeyError::Random)?;
    seal_by(&random, to, context, secret)
}

/// Of whoever seals; from it and a secret follows how the secret is sealed.
pub struct SealingKey(Zeroizing<[u8; 32]>);

impl SealingKey {
    /// From what its owner alone can make, and makes the same every time.
    pub(crate) fn new(material: &[u8]) -> Self {
        Self(Zeroizing::new(blake3::derive_key(SEALING_KEY, material)))
    }

    /// As [`seal`] does, but the same secret for the same node and use becomes the same text.
    pub fn seal(&self, to: &KeyId, context: &str, secret: &[u8]) -> Result<String, SealError> {
        let mut hash = blake3::Hasher::new_keyed(&self.0);
        for part in [&to.0[..], context.as_bytes(), secret] {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let ephemeral = Zeroizing::new(*hash.finalize().as_bytes());
        seal_by(&ephemeral, to, context, secret)
    }
}

fn seal_by(
    ephemeral: &[u8; 32],
    to: &KeyId,
    context: &str,
    secret: &[u8],
) -> Result<String, SealError> {
    if secret.len() > MAX_SECRET_BYTES {
        return Err(SealError::TooLarge(secret.len()));
    }
    let to = PublicKey::from(verifying_key(to)?.to_montgomery().to_bytes());
    let ours = StaticSecret::from(*ephemeral);
    let ephemeral = PublicKey::from(&ours);
    let (cipher, nonce) = cipher(&ours.diffie_hellman(&to), &ephemeral, &to);
    let payload = Payload { msg: secret, aad: context.as_bytes() };
    let closed = cipher
        .encrypt(&nonce, payload)
        .expect("a message far below the cipher's limit of 256 GiB is always encrypted");
    Ok(STANDARD.encode([&[FORMAT], &ephemeral.as_bytes()[..], &closed].concat()))
}

impl SigningKey {
    /// Opens what was sealed to this key for this use.
    pub fn unseal(&self, context: &str, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let bytes = STANDARD.decode(sealed).map_err(|_| SealError::Form)?;
        if bytes.len() < HEAD || bytes[0] != FORMAT {
            return Err(SealError::Form);
        }
        let mut ephemeral = [0; 32];
        ephemeral.copy_from_slice(&bytes[1..HEAD]);
        let ephemeral = PublicKey::from(ephemeral);
        let ours = self.to_x25519();
        let shared = ours.diffie_hellman(&ephemeral);
        if !shared.was_contributory() {
            return Err(SealError::Form);
        }
        let (cipher, nonce) = cipher(&shared, &ephemeral, &PublicKey::from(&ours));
        let payload = Payload { msg: &bytes[HEAD..], aad: context.as_bytes() };
        match cipher.decrypt(&nonce, payload) {
            Ok(secret) => Ok(Zeroizing::new(secret)),
            Err(_) => Err(SealError::Closed { context: context.to_owned() }),
        }
    }
}

/// Both public keys go into the derivation, so that a key and a nonce are used for one message only.
fn cipher(
    shared: &SharedSecret,
    ephemeral: &PublicKey,
    to: &PublicKey,
) -> (XChaCha20Poly1305, XNonce) {
    let salt = [&ephemeral.as_bytes()[..], to.as_bytes()].concat();
    let mut okm = Zeroizing::new([0; 56]);
    Hkdf::<Sha256>::new(Some(&salt), shared.as_bytes())
        .expand(LABEL, okm.as_mut())
        .expect("HKDF-SHA256 gives up to 8160 bytes");
    let cipher = XChaCha20Poly1305::new_from_slice(&okm[..32]).expect("the key has 32 bytes");
    let mut nonce = XNonce::default();
    nonce.copy_from_slice(&okm[32..]);
    (cipher, nonce)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_opens_for_its_node_and_its_use_only() {
        let node = SigningKey::generate().unwrap();
        let sealed = seal(&node.key_id(), "1/demo/password", b"hunter2").unwrap();
        assert_eq!(**node.unseal("1/demo/password", &sealed).unwrap(), *b"hunter2");
        let other = SigningKey::generate().unwrap();
        assert!(matches!(other.unseal("1/demo/password", &sealed), Err(SealError::Closed { .. })));
        assert!(matches!(node.unseal("2/demo/password", &sealed), Err(SealError::Closed { .. })));
        for junk in ["", "!", "AQ==", &STANDARD.encode([0; 80]), &STANDARD.encode([1; 33])] {
            assert!(node.unseal("1/demo/password", junk).is_err(), "{junk}");
        }
    }

    #[test]
    fn an_ephemeral_key_of_small_order_is_refused() {
        let node = SigningKey::generate().unwrap();
        let mut bytes = vec![0; 64];
        bytes[0] = FORMAT;
        assert!(matches!(node.unseal("x", &STANDARD.encode(bytes)), Err(SealError::Form)));
    }

    #[test]
    fn limits_and_weak_keys() {
        let node = SigningKey::generate().unwrap();
        let large = vec![0; MAX_SECRET_BYTES + 1];
        assert!(matches!(seal(&node.key_id(), "x", &large), Err(SealError::TooLarge(_))));
        assert!(matches!(seal(&KeyId([0; 32]), "x", b""), Err(SealError::Key(KeyError::Weak(_)))));
    }

    #[test]
    fn the_same_secret_is_sealed_to_the_same_text_by_the_same_key() {
        let (node, other) = (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]));
        let key = SealingKey::new(b"mine");
        let seal = |key: &SealingKey, to: &SigningKey, context: &str, secret: &[u8]| {
            let sealed = key.seal(&to.key_id(), context, secret).unwrap();
            assert_eq!(**to.unseal(context, &sealed).unwrap(), *secret);
            sealed
        };
        let sealed = seal(&key, &node, "1/demo/x", b"hunter2");
        assert_eq!(seal(&SealingKey::new(b"mine"), &node, "1/demo/x", b"hunter2"), sealed);
        assert_ne!(seal(&key, &node, "1/demo/x", b"hunter3"), sealed);
        assert_ne!(seal(&key, &other, "1/demo/x", b"hunter2"), sealed);
        assert_ne!(seal(&key, &node, "1/demo/y", b"hunter2"), sealed);
        // Nobody else can try which secret it is.
        assert_ne!(seal(&SealingKey::new(b"yours"), &node, "1/demo/x", b"hunter2"), sealed);
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(seed: [u8; 32], context in "\\PC{0,60}", secret: Vec<u8>) {
            let node = SigningKey::from_seed(seed);
            let sealed = seal(&node.key_id(), &context, &secret).unwrap();
            prop_assert_eq!(&**node.unseal(&context, &sealed).unwrap(), &secret);
            prop_assert_ne!(sealed, seal(&node.key_id(), &context, &secret).unwrap());
        }

        #[test]
        fn whatever_byte_is_changed_it_stays_closed(secret: Vec<u8>, at: prop::sample::Index, bit in 0..8u8) {
            let node = SigningKey::from_seed([9; 32]);
            let sealed = seal(&node.key_id(), "1/demo/x", &secret).unwrap();
            let mut bytes = STANDARD.decode(&sealed).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            // X25519 ignores the top bit of a public key, but the derivation does not.
            prop_assert!(node.unseal("1/demo/x", &STANDARD.encode(bytes)).is_err());
        }
    }
}
