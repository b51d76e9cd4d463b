//! HTTP Message Signatures (RFC 9421) in one small profile, the same everywhere.
//!
//! ```text
//!   Content-Digest:  sha-256=:…:
//!   Signature-Input: rhizome=("@method" "@path" "@query" "content-digest");created=…;nonce="…";keyid="…";alg="ed25519"
//!   Signature:       rhizome=:…:
//! ```
//!
//! Exactly these four components, in this order, and these four parameters, in any order. The
//! keyid is the public key in lower-case hexadecimal digits. A request counts once, within a minute.
//! A key on a hardware token signs no bytes as they stand: its alg is `sshsig`, and the signature is an
//! SSHSIG for `request@rhizome` over the same base.

mod base;
mod input;
mod nonces;
mod verifier;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rhizome_service::client::Signer;

pub use verifier::{SignedRequest, Verifier, WINDOW_SECS, check};

use self::input::Alg;
use crate::sshsig::namespace;
use crate::{KeyError, SigningKey, UserKey};

const LABEL: &str = "rhizome";
const COMPONENTS: [&str; 4] = ["@method", "@path", "@query", "content-digest"];
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");

/// The three headers that authenticate a request. `now` is in Unix seconds.
pub fn sign(
    key: &SigningKey,
    method: &Method,
    path: &str,
    query: Option<&str>,
    body: &[u8],
    now: i64,
) -> Result<[(HeaderName, HeaderValue); 3], KeyError> {
    sign_by(&key.clone().into(), method, path, query, body, now)
}

/// The same with a key that may be an agent's.
pub fn sign_by(
    key: &UserKey,
    method: &Method,
    path: &str,
    query: Option<&str>,
    body: &[u8],
    now: i64,
) -> Result<[(HeaderName, HeaderValue); 3], KeyError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(KeyError::Random)?;
    let nonce = URL_SAFE_NO_PAD.encode(random);
    let list = COMPONENTS.map(|c| format!("\"{c}\"")).join(" ");
    let keyid = key.key_id();
    let alg = match key {
        UserKey::Agent(key) if key.is_on_token() => Alg::SshSig,
        UserKey::Agent(_) | UserKey::Held(_) => Alg::Ed25519,
    };
    let alg = alg.name();
    let params = format!(r#"({list});created={now};nonce="{nonce}";keyid="{keyid}";alg="{alg}""#);
    let digest = base::content_digest(body);
    let signed = base::request(method, path, query, &digest, &params);
    let signature = STANDARD.encode(key.sign(namespace::REQUEST, signed.as_bytes())?);
    Ok([
        (CONTENT_DIGEST, header(&digest)),
        (SIGNATURE_INPUT, header(&format!("{LABEL}={params}"))),
        (SIGNATURE, header(&format!("{LABEL}=:{signature}:"))),
    ])
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("it is made of base64, digits and fixed words")
}

/// Signs every request of a [`rhizome_service::Client`].
pub fn signer(key: impl Into<UserKey>) -> Signer {
    let key = key.into();
    Arc::new(move |method: &Method, path: &str, query: Option<&str>, body: &[u8]| {
        let now = rhizome_service::clock::now_secs();
        match sign_by(&key, method, path, query, body, now) {
            Ok(headers) => HeaderMap::from_iter(headers),
            Err(error) => {
                // The request goes out unsigned and is refused; this line says why.
                tracing::error!(%error, "a request could not be signed");
                HeaderMap::new()
            }
        }
    })
}

#[cfg(test)]
mod tests;
