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
        self.first_time(&input, now)?;
        Ok(input.key)
    }

    /// Last of all: only who has a key can fill this memory.
    fn first_time(&self, input: &Input<'_>, now: i64) -> Result<(), Failure> {
        let mut id = blake3::Hasher::new();
        id.update(&input.key.0).update(input.nonce.as_bytes());
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        if nonces.insert(*id.finalize().as_bytes(), input.created, now - WINDOW_SECS) {
            Ok(())
        } else {
            Err(refuse("this request was made before; sign it anew"))
        }
    }
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
