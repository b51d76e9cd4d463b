//! The signatures that v4 takes: Ed25519, and Schnorr over Ristretto as Substrate has it (sr25519).
//!
//! Both have keys of 32 bytes, and v4 does not write down which one a key is for: what verifies under
//! either counts. Nobody can sign for a key of the one kind by the other: that takes the logarithm of a
//! point of which nobody knows it. An sr25519 account can do what v4 knows; deployments and everything
//! below `/v2` are signed with Ed25519.

use rhizome_model::KeyId;
use schnorrkel::{PublicKey, Signature};

const CONTEXT: &[u8] = b"substrate";

/// Whether anybody in particular can sign for a key.
pub fn check_key(key: &KeyId) -> bool {
    rhizome_identity::check_key(key).is_ok() || sr25519(key).is_some()
}

/// Whether a signature is the key's, strictly.
pub fn verify(key: &KeyId, message: &[u8], signature: &[u8]) -> bool {
    rhizome_identity::verify_bytes(key, message, signature).is_ok()
        || sr25519(key)
            .zip(Signature::from_bytes(signature).ok())
            .is_some_and(|(key, signature)| key.verify_simple(CONTEXT, message, &signature).is_ok())
}

fn sr25519(key: &KeyId) -> Option<PublicKey> {
    // For the neutral element everybody can sign.
    PublicKey::from_bytes(&key.0).ok().filter(|_| key.0 != [0; 32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_verify_and_nothing_else_does() {
        let ed = rhizome_identity::SigningKey::from_seed([1; 32]);
        let sr = schnorrkel::MiniSecretKey::from_bytes(&[1; 32])
            .unwrap()
            .expand_to_keypair(schnorrkel::ExpansionMode::Ed25519);
        let sr_key = KeyId(sr.public.to_bytes());
        let by_ed = ed.sign(b"text");
        let by_sr = sr.sign_simple(CONTEXT, b"text").to_bytes();
        let elsewhere = sr.sign_simple(b"other", b"text").to_bytes();
        assert!(verify(&ed.key_id(), b"text", &by_ed) && verify(&sr_key, b"text", &by_sr));
        assert!(check_key(&ed.key_id()) && check_key(&sr_key));
        for (key, message, signature) in [
            (ed.key_id(), &b"text"[..], &by_sr[..]),
            (sr_key, b"text", &by_ed),
            (sr_key, b"tex", &by_sr),
            (sr_key, b"text", &elsewhere),
            (sr_key, b"text", &by_sr[..63]),
        ] {
            assert!(!verify(&key, message, signature));
        }
        // The marker of sr25519 is part of the signature: without it, it would be malleable.
        let mut unmarked = by_sr;
        unmarked[63] &= 0x7f;
        assert!(!verify(&sr_key, b"text", &unmarked));
    }

    #[test]
    fn keys_that_anybody_can_sign_for_are_none() {
        let mut identity = [0; 32];
        identity[0] = 1;
        for weak in [[0; 32], identity] {
            assert!(!check_key(&KeyId(weak)));
        }
    }
}
