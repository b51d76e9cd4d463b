//! What is signed: the signature base of RFC 9421 §2.5, and the Content-Digest of RFC 9530.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use sha2::{Digest, Sha256};

/// `Content-Digest` of a body.
pub fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(body)))
}

/// The base of a request of our profile.
pub fn request(
    method: &Method,
    path: &str,
    query: Option<&str>,
    digest: &str,
    params: &str,
) -> String {
    // RFC 9421 §2.2.6 and §2.2.7: an empty path is "/", an absent query is "?".
    let path = if path.is_empty() { "/" } else { path };
    let query = format!("?{}", query.unwrap_or(""));
    signature_base(
        &[
            ("@method", method.as_str()),
            ("@path", path),
            ("@query", &query),
            ("content-digest", digest),
        ],
        params,
    )
}

/// One line per component, then the parameters.
pub fn signature_base(components: &[(&str, &str)], params: &str) -> String {
    let mut base = String::with_capacity(512);
    for (name, value) in components {
        base.extend(["\"", name, "\": ", value, "\n"]);
    }
    base.extend(["\"@signature-params\": ", params]);
    base
}

#[cfg(test)]
mod tests {
    use rhizome_model::KeyId;

    use super::*;

    /// RFC 9421 appendix B.2.6: its key (B.1.4), its request, its base and its signature.
    #[test]
    fn the_rfcs_ed25519_example() {
        let params = r#"("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519""#;
        let base = signature_base(
            &[
                ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
                ("@method", "POST"),
                ("@path", "/foo"),
                ("@authority", "example.com"),
                ("content-type", "application/json"),
                ("content-length", "18"),
            ],
            params,
        );
        assert_eq!(base, include_str!("../../tests/vectors/rfc9421-b26-base.txt").trim_end());
        let public = "26b40b8f93fff3d897112f7ebc582b232dbd72517d082fe83cfb30ddce43d1bb";
        let signature = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==";
        let key: KeyId = public.parse().unwrap();
        let sig = STANDARD.decode(signature).unwrap();
        crate::verify_bytes(&key, base.as_bytes(), &sig).unwrap();
        // Ed25519 is deterministic: the RFC's private key must give the RFC's signature.
        let secret = "9f8362f87a484a954e6e740c5b4c0e84229139a20aa8ab56ff66586f6a7d29c5";
        let ours = crate::SigningKey::from_hex_seed(secret).unwrap();
        assert_eq!(ours.key_id(), key);
        assert_eq!(STANDARD.encode(ours.sign(base.as_bytes())), signature);
    }

    /// RFC 9530 appendix D: the digest of `{"hello": "world"}` and a newline.
    #[test]
    fn the_rfcs_content_digest() {
        let expected = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";
        assert_eq!(content_digest(b"{\"hello\": \"world\"}\n"), expected);
    }
}
