//! Keys that users have already: OpenSSH private keys and BIP-39 words.

use sha2::Sha512;
use ssh_key::PrivateKey;
use zeroize::Zeroizing;

use crate::{KeyError, SigningKey};

const PBKDF2_ROUNDS: u32 = 2048;

impl SigningKey {
    /// Reads an OpenSSH private key. `passphrase` is asked only when the key is encrypted.
    pub fn from_openssh(
        pem: &str,
        passphrase: impl FnOnce() -> Result<Zeroizing<String>, KeyError>,
    ) -> Result<Self, KeyError> {
        let bad = |e| {
            KeyError::Import(format!(
                "this is not an OpenSSH private key that we can read: {e}; make an Ed25519 key with: ssh-keygen -t ed25519"
            ))
        };
        let mut key = PrivateKey::from_openssh(pem.trim_start()).map_err(bad)?;
        if key.is_encrypted() {
            let passphrase = passphrase()?;
            key = key.decrypt(passphrase.as_bytes()).map_err(|_| {
                KeyError::Import("the passphrase does not open this OpenSSH key".into())
            })?;
        }
        let Some(pair) = key.key_data().ed25519() else {
            return Err(KeyError::Import(format!(
                "this OpenSSH key is of type {}; make an Ed25519 key with: ssh-keygen -t ed25519",
                key.algorithm()
            )));
        };
        let key = Self::from_seed(pair.private.to_bytes());
        if key.key_id().0 != pair.public.0 {
            return Err(KeyError::Import("this OpenSSH key is damaged: its halves differ".into()));
        }
        Ok(key)
    }

    /// Derives the key of BIP-39 words as Substrate and the grid's clients do: PBKDF2 over the
    /// words' entropy, not over the words themselves as BIP-39 has it.
    pub fn from_mnemonic(words: &str, password: &str) -> Result<Self, KeyError> {
        let words = Zeroizing::new(words.split_whitespace().collect::<Vec<_>>().join(" "));
        let mnemonic = bip39::Mnemonic::parse_in_normalized(bip39::Language::English, &words)
            .map_err(|e| KeyError::Import(why_not_words(&e)))?;
        let entropy = Zeroizing::new(mnemonic.to_entropy());
        let salt = Zeroizing::new(format!("mnemonic{password}"));
        let mut seed = Zeroizing::new([0; 32]);
        pbkdf2::pbkdf2_hmac::<Sha512>(&entropy, salt.as_bytes(), PBKDF2_ROUNDS, seed.as_mut());
        Ok(Self::from_seed(*seed))
    }
}

/// Says what is wrong by position: the words are a secret and are not repeated.
fn why_not_words(error: &bip39::Error) -> String {
    match error {
        bip39::Error::BadWordCount(n) => {
            format!("these are {n} words; a mnemonic has 12, 15, 18, 21 or 24")
        }
        bip39::Error::UnknownWord(i) => {
            format!("word {} is not in the English BIP-39 list", i + 1)
        }
        bip39::Error::InvalidChecksum => {
            "the words' checksum is wrong: one of them is another word, or two are swapped".into()
        }
        bip39::Error::BadEntropyBitCount(_) | bip39::Error::AmbiguousLanguages(_) => {
            "these are not BIP-39 words".into()
        }
    }
}
