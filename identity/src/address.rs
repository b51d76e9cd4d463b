//! From a node's Ed25519 key to its Mycelium address.
//!
//! ```text
//!   Ed25519 public key ─ Edwards→Montgomery ─▶ X25519 public key ─ BLAKE3 ─▶ 16 bytes, first 0x04|parity
//! ```

use std::net::Ipv6Addr;

use rhizome_model::KeyId;

use crate::SigningKey;
use crate::key::verifying_key;

/// The Mycelium address of whoever holds this key. `None` for what is not a usable key.
pub fn mycelium_address(key: &KeyId) -> Option<Ipv6Addr> {
    let public = verifying_key(key).ok()?.to_montgomery();
    Some(address_of_x25519(public.as_bytes()))
}

impl SigningKey {
    pub fn mycelium_address(&self) -> Ipv6Addr {
        let public = x25519_dalek::PublicKey::from(&self.to_x25519());
        address_of_x25519(public.as_bytes())
    }
}

fn address_of_x25519(public: &[u8; 32]) -> Ipv6Addr {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&blake3::hash(public).as_bytes()[..16]);
    // 400::/7, Mycelium's range; the parity of the byte that is overwritten is kept in its last bit.
    bytes[0] = 0x04 | (bytes[0].count_ones() & 1) as u8;
    bytes.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn x25519_vectors() {
        for (secret, public, address) in [
            // A key file with the bytes 00 to 1f.
            (
                std::array::from_fn(|i| i as u8),
                "8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f",
                "430:9364:d8d8:84a9:dd60:de78:c767:d361",
            ),
            // Mycelium 0.7.10's own code on 32 × 07.
            (
                [7; 32],
                "13be4feaeaf204c7fd3358fc9c00721881d174278128227ec674f37f7fe97b6d",
                "44d:b237:e17f:d05e:81ad:b16f:4531:84b3",
            ),
        ] {
            let key = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(secret));
            assert_eq!(hex::encode(key.as_bytes()), public);
            assert_eq!(address_of_x25519(key.as_bytes()).to_string(), address);
        }
    }

    #[test]
    fn from_an_ed25519_key() {
        let seed = "fac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e";
        let key = SigningKey::from_hex_seed(seed).unwrap();
        let secret = "28b0ae221c6bb06856b287f60d7ea0d98552ea5a16db16956849aa371db3eb51";
        assert_eq!(hex::encode(*key.mycelium_secret()), secret);
        let public = x25519_dalek::PublicKey::from(&key.to_x25519());
        let expected = "340ee939363112129725389f9a090541c1103f62847fe66da53289056fc0186c";
        assert_eq!(hex::encode(public.as_bytes()), expected);
        assert_eq!(key.mycelium_address().to_string(), "565:9683:6688:38f:1e8d:8639:bd7e:f416");
    }

    #[test]
    fn what_is_no_key_has_no_address() {
        assert_eq!(mycelium_address(&KeyId([0; 32])), None);
    }

    proptest! {
        #[test]
        fn both_halves_give_the_same_address(seed: [u8; 32]) {
            let key = SigningKey::from_seed(seed);
            prop_assert_eq!(mycelium_address(&key.key_id()), Some(key.mycelium_address()));
        }
    }
}
