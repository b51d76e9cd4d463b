use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_identity::{KeyError, SigningKey};
use rhizome_model::registrar::auth_challenge;
use rhizome_model::{AccountId, KeyId};
use zeroize::Zeroizing;

const PLAIN: &str = include_str!("../vectors/openssh-ed25519");
const ENCRYPTED: &str = include_str!("../vectors/openssh-ed25519-encrypted");
const ECDSA: &str = include_str!("../vectors/openssh-ecdsa");

/// The public key in an OpenSSH .pub line: after its name, each with its length.
fn public_of(line: &str) -> KeyId {
    let blob = STANDARD.decode(line.split(' ').nth(1).unwrap()).unwrap();
    KeyId(blob[blob.len() - 32..].try_into().unwrap())
}

fn never() -> Result<Zeroizing<String>, KeyError> {
    panic!("a passphrase was asked for a key that has none")
}

fn answer(text: &str) -> impl FnOnce() -> Result<Zeroizing<String>, KeyError> {
    let text = Zeroizing::new(text.to_owned());
    move || Ok(text)
}

#[test]
fn openssh_keys_plain_and_encrypted() {
    let plain = SigningKey::from_openssh(PLAIN, never).unwrap();
    assert_eq!(plain.key_id(), public_of(include_str!("../vectors/openssh-ed25519.pub")));
    let encrypted = SigningKey::from_openssh(ENCRYPTED, answer("correct horse")).unwrap();
    let public = public_of(include_str!("../vectors/openssh-ed25519-encrypted.pub"));
    assert_eq!(encrypted.key_id(), public);
}

#[test]
fn openssh_keys_that_cannot_be_used() {
    let refused = |pem: &str, passphrase: &str| {
        SigningKey::from_openssh(pem, answer(passphrase)).unwrap_err().to_string()
    };
    assert!(refused(ENCRYPTED, "wrong").contains("passphrase"));
    assert!(refused(ECDSA, "").contains("make an Ed25519 key with: ssh-keygen -t ed25519"));
    assert!(refused("junk", "").contains("not an OpenSSH private key"));
    assert!(refused(&PLAIN[..200], "").contains("not an OpenSSH private key"));
    assert!(refused(include_str!("../vectors/openssh-ed25519.pub"), "").contains("not an OpenSSH"));
    // A passphrase that cannot be asked for is the caller's error, unchanged.
    let no = || Err(KeyError::Import("no terminal".into()));
    assert_eq!(SigningKey::from_openssh(ENCRYPTED, no).unwrap_err().to_string(), "no terminal");
}

const WORDS: &str = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";

/// The vectors of the registrar's Go client.
#[test]
fn words_give_the_grids_key() {
    let key = SigningKey::from_mnemonic(WORDS, "").unwrap();
    let seed = "fac7959dbfe72f052e5a0c3c8d6530f202b02fd8f9f5ca3580ec8deb7797479e";
    assert_eq!(key.to_hex_seed().as_str(), seed);
    let public = "345071da55e5dccefaaa440339415ef9f2663338a38f7da0df21be5ab4e055ef";
    assert_eq!(key.key_id().to_string(), public);
    assert_eq!(key.mycelium_address().to_string(), "565:9683:6688:38f:1e8d:8639:bd7e:f416");
    let challenge = auth_challenge(1_700_000_000, AccountId(1));
    let signature = STANDARD.encode(key.sign(challenge.as_bytes()));
    assert_eq!(
        format!("{}:{signature}", STANDARD.encode(&challenge)),
        "MTcwMDAwMDAwMDox:UxYW2XJN+aKDHKOX/FeFoAqmgGkGXVFB7RzU0qGXaj4qolofhYpaCdTJdHizFZ3dKyKWQvWkRmIf+315XHHrDg=="
    );
}

#[test]
fn a_password_makes_another_key_and_spaces_do_not() {
    let plain = SigningKey::from_mnemonic(WORDS, "").unwrap();
    let spaced = format!("  {}\n", WORDS.replace(' ', "   "));
    assert_eq!(SigningKey::from_mnemonic(&spaced, "").unwrap().key_id(), plain.key_id());
    assert_ne!(SigningKey::from_mnemonic(WORDS, "x").unwrap().key_id(), plain.key_id());
}

/// Substrate's own vector (github.com/paritytech/substrate-bip39, password "Substrate"): the first
/// half of its 64-byte seed.
#[test]
fn substrates_vectors() {
    let words = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
    let key = SigningKey::from_mnemonic(words, "Substrate").unwrap();
    let seed = "44e9d125f037ac1d51f0a7d3649689d422c2af8b1ec8e00d71db4d7bf6d127e3";
    assert_eq!(key.to_hex_seed().as_str(), seed);
}

#[test]
fn wrong_words_are_explained_and_not_repeated() {
    for (words, says) in [
        ("bottom drive", "2 words"),
        (&WORDS.replace("lake", "laek")[..], "word 4"),
        (&"abandon ".repeat(12), "checksum"),
        ("", "0 words"),
    ] {
        let error = SigningKey::from_mnemonic(words, "").unwrap_err().to_string();
        assert!(error.contains(says), "{words}: {error}");
        assert!(!error.contains("bottom") && !error.contains("laek"), "{error}");
    }
}
