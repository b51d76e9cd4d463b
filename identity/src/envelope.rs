//! Signing DSSE envelopes, and checking the signatures on them.
//!
//! A signature is 64 raw bytes of Ed25519 over the PAE, or an SSHSIG over the PAE. The keyid is the
//! public key in both cases, so one key cannot sign twice by signing in two ways.

use rhizome_model::{Envelope, KeyId, Signature, pae};

use crate::SigningKey;
use crate::key::KeyError;
use crate::sshsig::{SshSigError, namespace, verify_either};

/// Which signature of an envelope is bad, counted from 1, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("the envelope carries no signature")]
    Unsigned,
    #[error(
        "signature {nth}: its keyid '{keyid}' is not an Ed25519 public key in 64 lower-case hexadecimal digits"
    )]
    KeyId { nth: usize, keyid: String },
    #[error("signature {nth}: the key {keyid} is one that anybody can sign for")]
    WeakKey { nth: usize, keyid: KeyId },
    #[error("signature {nth}: {keyid} has signed already")]
    Duplicate { nth: usize, keyid: KeyId },
    #[error("signature {nth}, by {keyid}, does not fit the payload: one of them was changed")]
    Mismatch { nth: usize, keyid: KeyId },
    #[error("signature {nth}, an SSH signature by {keyid}, is refused: {why}")]
    SshSig { nth: usize, keyid: KeyId, why: SshSigError },
}

impl SigningKey {
    /// Puts a payload into an envelope with this key's signature.
    pub fn sign_envelope(&self, payload_type: &str, payload: &[u8]) -> Envelope {
        let mut envelope = Envelope {
            payload_type: payload_type.to_owned(),
            payload: payload.to_owned(),
            signatures: Vec::with_capacity(1),
        };
        self.add_signature(&mut envelope);
        envelope
    }

    /// Adds this key's signature. One that it made before is replaced: a key signs once.
    pub fn add_signature(&self, envelope: &mut Envelope) {
        let keyid = self.key_id().to_string();
        let sig = self.sign(&envelope.pae()).to_vec();
        envelope.signatures.retain(|s| s.keyid != keyid);
        envelope.signatures.push(Signature { keyid, sig });
    }
}

/// The keys that signed an envelope. Every signature must be good: each verifies strictly against
/// the key that its keyid is, no key signs twice, no key is weak.
pub fn verify_signatures(envelope: &Envelope) -> Result<Vec<KeyId>, SignatureError> {
    if envelope.signatures.is_empty() {
        return Err(SignatureError::Unsigned);
    }
    let message = envelope.pae();
    let mut signers = Vec::with_capacity(envelope.signatures.len());
    for (nth, signature) in (1..).zip(&envelope.signatures) {
        let keyid: KeyId = signature
            .keyid
            .parse()
            .map_err(|_| SignatureError::KeyId { nth, keyid: shown(&signature.keyid) })?;
        if signers.contains(&keyid) {
            return Err(SignatureError::Duplicate { nth, keyid });
        }
        match verify_either(&keyid, namespace::ENVELOPE, &message, &signature.sig) {
            Ok(()) => signers.push(keyid),
            Err(KeyError::SshSig(why)) => {
                return Err(SignatureError::SshSig { nth, keyid, why });
            }
            Err(KeyError::Weak(_)) => return Err(SignatureError::WeakKey { nth, keyid }),
            Err(_) => return Err(SignatureError::Mismatch { nth, keyid }),
        }
    }
    Ok(signers)
}

/// The name of what was signed: the same for the same type and payload, whoever signed it and
/// however the JSON around it is written.
pub fn digest(envelope: &Envelope) -> String {
    let mut hash = blake3::Hasher::new_derive_key("rhizome 2026 envelope digest v1");
    hash.update(&pae(&envelope.payload_type, &envelope.payload));
    hash.finalize().to_hex().to_string()
}

fn shown(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> (SigningKey, SigningKey) {
        (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]))
    }

    #[test]
    fn several_keys_sign_one_payload() {
        let (a, b) = keys();
        let mut envelope = a.sign_envelope("t", b"payload");
        b.add_signature(&mut envelope);
        b.add_signature(&mut envelope);
        assert_eq!(verify_signatures(&envelope).unwrap(), [a.key_id(), b.key_id()]);
    }

    #[test]
    fn one_bad_signature_of_two_is_named() {
        let (a, b) = keys();
        let mut envelope = a.sign_envelope("t", b"payload");
        b.add_signature(&mut envelope);
        envelope.signatures[1].sig[5] ^= 1;
        let expected = SignatureError::Mismatch { nth: 2, keyid: b.key_id() };
        assert_eq!(verify_signatures(&envelope), Err(expected));
    }

    #[test]
    fn every_way_to_be_refused() {
        let (a, _) = keys();
        let good = a.sign_envelope("t", b"payload");
        let with = |keyid: &str, sig: Vec<u8>| Envelope {
            signatures: vec![Signature { keyid: keyid.into(), sig }],
            ..good.clone()
        };
        let check = |e: &Envelope| verify_signatures(e).unwrap_err();
        assert_eq!(
            check(&Envelope { signatures: vec![], ..good.clone() }),
            SignatureError::Unsigned
        );
        let upper = good.signatures[0].keyid.to_uppercase();
        assert!(matches!(check(&with(&upper, vec![0; 64])), SignatureError::KeyId { nth: 1, .. }));
        assert!(matches!(check(&with("", vec![0; 64])), SignatureError::KeyId { .. }));
        let weak = format!("01{}", "00".repeat(31));
        let mut forged = vec![0; 64];
        forged[0] = 1;
        assert!(matches!(check(&with(&weak, forged)), SignatureError::WeakKey { .. }));
        let short = with(&good.signatures[0].keyid, good.signatures[0].sig[..63].to_vec());
        assert!(matches!(check(&short), SignatureError::Mismatch { .. }));
        let mut twice = good.clone();
        twice.signatures.push(good.signatures[0].clone());
        assert!(matches!(check(&twice), SignatureError::Duplicate { nth: 2, .. }));
    }

    #[test]
    fn a_payload_signed_as_one_type_is_nothing_as_another() {
        let (a, _) = keys();
        let mut envelope = a.sign_envelope("application/a", b"payload");
        envelope.payload_type = "application/b".into();
        assert!(verify_signatures(&envelope).is_err());
    }

    #[test]
    fn the_digest_is_of_what_was_signed() {
        let (a, b) = keys();
        let one = a.sign_envelope("t", b"payload");
        assert_eq!(digest(&one), digest(&b.sign_envelope("t", b"payload")));
        assert_ne!(digest(&one), digest(&a.sign_envelope("t", b"other")));
        assert_ne!(digest(&one), digest(&a.sign_envelope("u", b"payload")));
    }

    proptest! {
        #[test]
        fn whatever_byte_is_changed_it_is_refused(
            payload in prop::collection::vec(any::<u8>(), 1..200),
            part in 0..4u8,
            at: prop::sample::Index,
            bit in 0..7u8,
        ) {
            let key = SigningKey::from_seed([3; 32]);
            let mut envelope = key.sign_envelope("application/vnd.test+json", &payload);
            let flip = |bytes: &mut [u8]| bytes[at.index(bytes.len())] ^= 1 << bit;
            match part {
                0 => flip(&mut envelope.payload),
                1 => flip(&mut envelope.signatures[0].sig),
                2 => {
                    // Bit 7 stays, so the text stays ASCII.
                    let mut bytes = envelope.payload_type.into_bytes();
                    flip(&mut bytes);
                    envelope.payload_type = String::from_utf8(bytes).unwrap();
                }
                _ => {
                    let mut bytes = envelope.signatures[0].keyid.clone().into_bytes();
                    flip(&mut bytes);
                    envelope.signatures[0].keyid = String::from_utf8(bytes).unwrap();
                }
            }
            prop_assert!(verify_signatures(&envelope).is_err());
        }
    }
}
