//! Reading `Signature-Input` and `Signature`: one signature of our profile, nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::KeyId;

use super::COMPONENTS;

/// Longer nonces would fill the memory of those that were seen.
const NONCE_LENGTH: std::ops::RangeInclusive<usize> = 8..=64;

/// A `Signature-Input` of our profile.
#[derive(Debug, PartialEq, Eq)]
pub struct Input<'a> {
    pub label: &'a str,
    /// The value behind the label, as it stands: what is signed as `@signature-params`.
    pub params: &'a str,
    pub created: i64,
    pub nonce: &'a str,
    pub key: KeyId,
    pub alg: Alg,
}

/// How the signature base was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alg {
    Ed25519,
    SshSig,
}

impl Alg {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::SshSig => "sshsig",
        }
    }
}

impl<'a> Input<'a> {
    /// `Err` says what is missing or wrong.
    pub fn parse(header: &'a str) -> Result<Self, String> {
        let (label, params) = header.split_once('=').ok_or("Signature-Input has no label")?;
        if label.is_empty() || !label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        {
            return Err("the label of Signature-Input must be lower-case letters and digits".into());
        }
        let list = COMPONENTS.map(|c| format!("\"{c}\"")).join(" ");
        let rest = params
            .strip_prefix(&format!("({list})"))
            .ok_or_else(|| format!("Signature-Input must cover exactly ({list})"))?;
        let (mut created, mut nonce, mut keyid, mut alg) = (None, None, None, None);
        for param in rest.split(';').skip(1) {
            let (name, value) = param.split_once('=').ok_or("a parameter has no value")?;
            let slot = match name {
                "created" => &mut created,
                "nonce" => &mut nonce,
                "keyid" => &mut keyid,
                "alg" => &mut alg,
                _ => return Err("the parameters are created, nonce, keyid and alg".into()),
            };
            if slot.replace(value).is_some() {
                return Err(format!("the parameter {name} stands twice"));
            }
        }
        let alg = alg.filter(|_| rest.starts_with(';')).and_then(quoted);
        let alg = [Alg::Ed25519, Alg::SshSig].into_iter().find(|a| Some(a.name()) == alg);
        let alg = alg.ok_or("the parameter alg must be \"ed25519\" or \"sshsig\"")?;
        let created =
            created.and_then(integer).ok_or("the parameter created must be Unix seconds")?;
        let nonce = nonce.and_then(quoted).filter(|n| NONCE_LENGTH.contains(&n.len())).ok_or_else(
            || format!("the parameter nonce must have {NONCE_LENGTH:?} characters of base64url"),
        )?;
        let key = keyid
            .and_then(quoted)
            .and_then(|k| k.parse().ok())
            .ok_or("the parameter keyid must be the public key in 64 hexadecimal digits")?;
        Ok(Self { label, params, created, nonce, key, alg })
    }
}

/// The bytes of the one signature in a `Signature` header.
pub fn signature(header: &str, label: &str) -> Option<Vec<u8>> {
    let value = header.strip_prefix(label)?.strip_prefix("=:")?.strip_suffix(':')?;
    STANDARD.decode(value).ok()
}

/// Digits only: what could be written in two ways would be two signatures of one request.
fn integer(text: &str) -> Option<i64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn quoted(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let plain = inner.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    plain.then_some(inner)
}
