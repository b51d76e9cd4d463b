//! The receiving side.

use std::sync::{Mutex, PoisonError};

use http::{HeaderMap, HeaderName, Method};
use rhizome_model::{Code, Failure, KeyId};

use super::input::{Alg, Input, signature};
use super::nonces::Nonces;
use super::{CONTENT_DIGEST, SIGNATURE, SIGNATURE_INPUT, base};
use crate::sshsig::{namespace, verify_sshsig};
use crate::verify_bytes;

/// A request is taken this long before and after it was signed, by our clock.
pub const WINDOW_SECS: i64 = 60;

/// Tells who signed a request. One per service: it remembers the nonces that were used.
#[derive(Debug, Default)]
pub struct Verifier {
    nonces: Mutex<Nonces>,
}

impl Verifier {
    pub fn new() -> Self {
        Self::default()
    }

    /// The key that signed this request, which is in time and seen for the first time.
    /// `now` is in Unix seconds.
    pub fn verify(
        &self,
        method: &Method,
        path: &str,
        query: Option<&str>,
        headers: &HeaderMap,
        body: &[u8],
        now: i64,
    ) -> Result<KeyId, Failure> {
        let signed = check(method, path, query, headers, body, now)?;
        self.first_time(&signed, now)?;
        Ok(signed.key)
    }

    /// Last of all: only who has a key can fill this memory.
    fn first_time(&self, signed: &SignedRequest, now: i64) -> Result<(), Failure> {
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        if nonces.insert(signed.once, signed.created, now - WINDOW_SECS) {
            Ok(())
        } else {
            Err(refuse("this request was made before; sign it anew"))
        }
    }
}

/// A request whose signature is good and in time. Whether it came before is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedRequest {
    pub key: KeyId,
    /// Unix seconds.
    pub created: i64,
    /// Stands for its key and nonce: what must not come twice.
    pub once: [u8; 32],
}

/// Checks everything but whether the request came before: for who remembers that elsewhere.
pub fn check(
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
    now: i64,
) -> Result<SignedRequest, Failure> {
    let input = Input::parse(only(headers, &SIGNATURE_INPUT)?).map_err(refuse)?;
    if input.created.abs_diff(now) > WINDOW_SECS.unsigned_abs() {
        return Err(refuse(format!(
            "the request was signed at {} and it is {now} here; at most {WINDOW_SECS} s may lie between",
            input.created
        )));
    }
    let digest = only(headers, &CONTENT_DIGEST)?;
    if digest != base::content_digest(body) {
        return Err(refuse("Content-Digest is not the SHA-256 of the body"));
    }
    let sig = signature(only(headers, &SIGNATURE)?, input.label).ok_or_else(|| {
        refuse("Signature does not hold the signature that Signature-Input names")
    })?;
    let signed = base::request(method, path, query, digest, input.params);
    match input.alg {
        Alg::Ed25519 => verify_bytes(&input.key, signed.as_bytes(), &sig)
            .map_err(|_| refuse("the signature does not fit the request"))?,
        Alg::SshSig => verify_sshsig(&input.key, namespace::REQUEST, signed.as_bytes(), &sig)
            .map_err(|e| refuse(format!("the SSH signature is refused: {e}")))?,
    }
    let mut once = blake3::Hasher::new();
    once.update(&input.key.0).update(input.nonce.as_bytes());
    let once = *once.finalize().as_bytes();
    Ok(SignedRequest { key: input.key, created: input.created, once })
}

fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Failure> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => {
            value.to_str().map_err(|_| refuse(format!("the header {name} is not text")))
        }
        (None, _) => Err(refuse(format!("the request is not signed: it has no header {name}"))),
        (Some(_), Some(_)) => Err(refuse(format!("the header {name} stands twice"))),
    }
}

fn refuse(message: impl Into<String>) -> Failure {
    Failure::new(Code::Unauthenticated, message)
}
