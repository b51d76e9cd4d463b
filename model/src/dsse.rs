//! DSSE, Dead Simple Signing Envelope v1.0.2 (github.com/secure-systems-lab/dsse).
//!
//! The payload's bytes are what was signed: they are kept as they came and never written anew.

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

/// The largest envelope that anybody takes, in bytes of its JSON.
pub const MAX_ENVELOPE_BYTES: usize = 512 * 1024;
/// More signatures than this are refused before one is checked.
pub const MAX_SIGNATURES: usize = 16;

/// The payload types of Rhizome.
pub mod payload_type {
    pub const DEPLOYMENT: &str = "application/vnd.rhizome.deployment.v1+json";
    pub const DELETE: &str = "application/vnd.rhizome.delete.v1+json";
    pub const OPERATION: &str = "application/vnd.rhizome.operation.v1+json";
}

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD_BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);
const URL_SAFE_BASE64: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);

/// A signed envelope whose form is right. Its signatures are not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub payload_type: String,
    pub payload: Vec<u8>,
    pub signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// A hint that finds the key. With us the public key in hexadecimal digits.
    pub keyid: String,
    pub sig: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the envelope has {0} bytes; at most {MAX_ENVELOPE_BYTES} are taken")]
    TooLarge(usize),
    #[error("not a DSSE envelope")]
    Json(#[from] serde_json::Error),
    #[error("{0} is not base64")]
    Base64(&'static str),
    #[error("the envelope carries no signature")]
    Unsigned,
    #[error("the envelope carries more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
}

// Unknown fields are allowed here: the standard says that consumers ignore them.
#[derive(Serialize, Deserialize)]
struct Wire {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<WireSignature>,
}

#[derive(Serialize, Deserialize)]
struct WireSignature {
    #[serde(default)]
    keyid: Option<String>,
    sig: String,
}

impl Envelope {
    /// Reads an envelope. Both base64 alphabets are accepted, as the standard asks.
    pub fn from_json(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLarge(bytes.len()));
        }
        let wire: Wire = serde_json::from_slice(bytes)?;
        if wire.signatures.is_empty() {
            return Err(EnvelopeError::Unsigned);
        }
        if wire.signatures.len() > MAX_SIGNATURES {
            return Err(EnvelopeError::TooManySignatures);
        }
        let signatures = wire
            .signatures
            .into_iter()
            .map(|s| {
                let sig = decode(&s.sig).ok_or(EnvelopeError::Base64("a signature"))?;
                Ok(Signature { keyid: s.keyid.unwrap_or_default(), sig })
            })
            .collect::<Result<_, EnvelopeError>>()?;
        let payload = decode(&wire.payload).ok_or(EnvelopeError::Base64("the payload"))?;
        Ok(Self { payload_type: wire.payload_type, payload, signatures })
    }

    pub fn to_json(&self) -> String {
        let wire = Wire {
            payload: STANDARD_BASE64.encode(&self.payload),
            payload_type: self.payload_type.clone(),
            signatures: self
                .signatures
                .iter()
                .map(|s| WireSignature {
                    keyid: Some(s.keyid.clone()),
                    sig: STANDARD_BASE64.encode(&s.sig),
                })
                .collect(),
        };
        serde_json::to_string(&wire).expect("strings and lists always have a JSON form")
    }

    /// The bytes that each signature signs.
    pub fn pae(&self) -> Vec<u8> {
        pae(&self.payload_type, &self.payload)
    }
}

/// Pre-Authentication Encoding: what is signed instead of the payload, so that a payload signed as
/// one type can never be taken for another.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD_BASE64.decode(text).or_else(|_| URL_SAFE_BASE64.decode(text)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pae_of_the_standards_own_example() {
        // protocol.md of the DSSE repository, "Test vectors".
        let bytes = pae("http://example.com/HelloWorld", b"hello world");
        assert_eq!(bytes, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn forms_that_are_no_envelope() {
        for bad in [
            "",
            "[]",
            r#"{"payload":"","payloadType":"t"}"#,
            r#"{"payload":"","payloadType":"t","signatures":[]}"#,
            r#"{"payload":"!","payloadType":"t","signatures":[{"sig":""}]}"#,
        ] {
            assert!(Envelope::from_json(bad.as_bytes()).is_err(), "{bad}");
        }
        let many = vec![r#"{"sig":""}"#; MAX_SIGNATURES + 1].join(",");
        let many = format!(r#"{{"payload":"","payloadType":"t","signatures":[{many}]}}"#);
        assert!(matches!(
            Envelope::from_json(many.as_bytes()),
            Err(EnvelopeError::TooManySignatures)
        ));
    }

    proptest! {
        #[test]
        fn envelopes_read_back(kind in "\\PC{0,40}", payload: Vec<u8>, sig: Vec<u8>, keyid in "\\PC{0,64}") {
            let envelope = Envelope { payload_type: kind, payload, signatures: vec![Signature { keyid, sig }] };
            let json = envelope.to_json();
            prop_assert_eq!(Envelope::from_json(json.as_bytes()).unwrap(), envelope);
        }

        #[test]
        fn both_base64_alphabets_are_read(payload: Vec<u8>) {
            let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&payload);
            let json = format!(r#"{{"payload":"{text}","payloadType":"t","signatures":[{{"sig":"AA=="}}]}}"#);
            prop_assert_eq!(Envelope::from_json(json.as_bytes()).unwrap().payload, payload);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Envelope::from_json(&bytes);
        }
    }
}
