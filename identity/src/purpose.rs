//! What a key does for a purpose: sign, and encrypt between two long-term keys. The purpose is part
//! of what is signed and of what is derived, so what was made for one is nothing for another, and
//! none of it is ever an envelope, a request or a challenge.
//!
//! ```text
//!   signed = "rhizome purpose v1" 0x00 ‖ length of purpose ‖ purpose ‖ length of data ‖ data
//!   ours × theirs ─ X25519 ─ HKDF-SHA256(both public keys; purpose) ─▶ XChaCha20-Poly1305, random nonce
//!   ECDH message = 0x01 ‖ nonce ‖ ciphertext and tag
//! ```

use std::str::FromStr;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use rhizome_model::KeyId;
use sha2::Sha256;
use x25519_dalek::PublicKey;
use zeroize::Zeroizing;

use crate::key::verifying_key;
use crate::{KeyError, SealError, SigningKey, verify_bytes};

const SIGNED: &[u8] = b"rhizome purpose v1\0";
const DERIVED: &[u8] = b"rhizome 2026 ecdh v1\0";
const FORMAT: u8 = 1;
const NONCE: usize = 24;
const MAX_NAME: usize = 64;

/// The name of a use that a key is put to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Purpose(String);

impl FromStr for Purpose {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let form = (1..=MAX_NAME).contains(&text.len())
            && text.bytes().all(plain)
            && text.as_bytes()[0].is_ascii_lowercase();
        if form {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "a purpose is 1 to 64 lower-case letters, digits, - and ., and begins with a letter",
            )
        }
    }
}

impl Purpose {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The context of [`crate::seal`] for it. Those of secrets begin with a digit.
    pub fn context(&self) -> String {
        format!("purpose:{}", self.0)
    }

    fn framed(&self, data: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNED.to_vec();
        for part in [self.0.as_bytes(), data] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

/// Checks what [`SigningKey::sign_for`] made.
pub fn verify_for(
    key: &KeyId,
    purpose: &Purpose,
    data: &[u8],
    signature: &[u8],
) -> Result<(), KeyError> {
    verify_bytes(key, &purpose.framed(data), signature)
}

impl SigningKey {
    pub fn sign_for(&self, purpose: &Purpose, data: &[u8]) -> [u8; 64] {
        self.sign(&purpose.framed(data))
    }

    /// Encrypts so that the holders of both keys, and nobody else, can read it.
    pub fn ecdh_encrypt(
        &self,
        to: &KeyId,
        purpose: &Purpose,
        data: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let mut nonce = XNonce::default();
        getrandom::fill(&mut nonce).map_err(KeyError::Random)?;
        let cipher = self.ecdh(to, purpose)?;
        // Who sent it is bound, or a message could be sent back to its sender as another's.
        let payload = Payload { msg: data, aad: &self.key_id().0 };
        let closed = cipher
            .encrypt(&nonce, payload)
            .expect("a message far below the cipher's limit of 256 GiB is always encrypted");
        Ok([&[FORMAT], &nonce[..], &closed].concat())
    }

    /// Opens what `from` encrypted to this key.
    pub fn ecdh_decrypt(
        &self,
        from: &KeyId,
        purpose: &Purpose,
        data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let Some((&FORMAT, rest)) = data.split_first() else { return Err(SealError::Form) };
        let (head, closed) = rest.split_at_checked(NONCE).ok_or(SealError::Form)?;
        let mut nonce = XNonce::default();
        nonce.copy_from_slice(head);
        let payload = Payload { msg: closed, aad: &from.0 };
        match self.ecdh(from, purpose)?.decrypt(&nonce, payload) {
            Ok(opened) => Ok(Zeroizing::new(opened)),
            Err(_) => Err(SealError::Closed { context: purpose.context() }),
        }
    }

    fn ecdh(&self, peer: &KeyId, purpose: &Purpose) -> Result<XChaCha20Poly1305, SealError> {
        let theirs = PublicKey::from(verifying_key(peer)?.to_montgomery().to_bytes());
        let shared = self.to_x25519().diffie_hellman(&theirs);
        if !shared.was_contributory() {
            return Err(SealError::Form);
        }
        let (ours, theirs) = (self.key_id().0, peer.0);
        // The same for both sides.
        let salt = [ours.min(theirs), ours.max(theirs)].concat();
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(&salt), shared.as_bytes())
            .expand_multi_info(&[DERIVED, purpose.0.as_bytes()], key.as_mut())
            .expect("HKDF-SHA256 gives up to 8160 bytes");
        Ok(XChaCha20Poly1305::new_from_slice(key.as_ref()).expect("the key has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rhizome_model::pae;

    use super::*;

    fn keys() -> [SigningKey; 3] {
        [1, 2, 3].map(|n| SigningKey::from_seed([n; 32]))
    }

    fn purpose(text: &str) -> Purpose {
        text.parse().unwrap()
    }

    #[test]
    fn a_signature_for_one_purpose_is_nothing_for_another_nor_outside() {
        let [key, ..] = keys();
        let id = key.key_id();
        let sig = key.sign_for(&purpose("telemetry"), b"data");
        assert!(verify_for(&id, &purpose("telemetry"), b"data", &sig).is_ok());
        assert!(verify_for(&id, &purpose("telemetr"), b"ydata", &sig).is_err());
        assert!(verify_for(&id, &purpose("other"), b"data", &sig).is_err());
        for outside in [&b"data"[..], &pae("t", b"data")] {
            assert!(verify_bytes(&id, outside, &sig).is_err());
            let sig = key.sign(outside);
            assert!(verify_for(&id, &purpose("telemetry"), b"data", &sig).is_err());
        }
        for bad in ["", "A", "1a", "a b", "a/b", &"a".repeat(65), "é"] {
            assert!(bad.parse::<Purpose>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ecdh_opens_for_the_two_and_the_purpose_only() {
        let [a, b, c] = keys();
        let p = purpose("backup");
        let sent = a.ecdh_encrypt(&b.key_id(), &p, b"hello").unwrap();
        assert_eq!(**b.ecdh_decrypt(&a.key_id(), &p, &sent).unwrap(), *b"hello");
        let closed = |key: &SigningKey, from: &SigningKey, p: &Purpose, data: &[u8]| {
            key.ecdh_decrypt(&from.key_id(), p, data).is_err()
        };
        assert!(closed(&c, &a, &p, &sent) && closed(&b, &c, &p, &sent));
        assert!(closed(&b, &a, &purpose("other"), &sent));
        assert!(closed(&a, &b, &p, &sent), "sent back to its sender");
        assert!(closed(&b, &a, &p, &[]) && closed(&b, &a, &p, &sent[..20]));
        assert!(matches!(
            a.ecdh_encrypt(&KeyId([0; 32]), &p, b""),
            Err(SealError::Key(KeyError::Weak(_)))
        ));
    }

    proptest! {
        #[test]
        fn whatever_byte_is_changed_it_stays_closed(
            data: Vec<u8>, at: prop::sample::Index, bit in 0..8u8,
        ) {
            let [a, b, _] = keys();
            let mut sent = a.ecdh_encrypt(&b.key_id(), &purpose("p"), &data).unwrap();
            let at = at.index(sent.len());
            sent[at] ^= 1 << bit;
            prop_assert!(b.ecdh_decrypt(&a.key_id(), &purpose("p"), &sent).is_err());
        }
    }
}
