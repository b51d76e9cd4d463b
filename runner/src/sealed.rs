//! Secrets on their way to the one call that needs them.
//!
//! A script never sees a secret: it has a token, and the token is what journals, plans and events
//! hold. Just before a workload is made, the tokens in its spec are replaced by what the identity
//! manager finds in them, or derives for them. A token is bound to its deployment: it opens for that
//! deployment's resources only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::api::{GenerateRequest, UnsealReply, UnsealRequest};
pub(crate) use rhizome_model::secret::secret_token as token;
use rhizome_model::secret::{Secret, find_secret, has_secret};
use rhizome_model::{Code, Failure, ResourceId};
use rhizome_service::Client;
use serde_json::Value;

/// Opens tokens through the node's identity manager.
pub struct Unsealer {
    client: Option<Client>,
}

impl Unsealer {
    pub fn new(client: Option<Client>) -> Self {
        Self { client }
    }

    /// The spec with every token in its texts replaced by the secret.
    pub(crate) async fn open(&self, id: &ResourceId, spec: &Value) -> Result<Value, Failure> {
        let mut spec = spec.clone();
        let mut texts = Vec::new();
        collect_texts(&mut spec, &mut texts);
        for text in texts {
            while let Some((range, secret)) = find_secret(text) {
                let open = self.secret(id, secret).await?;
                text.replace_range(range, &open);
            }
        }
        Ok(spec)
    }

    async fn secret(&self, id: &ResourceId, secret: Secret<'_>) -> Result<String, Failure> {
        let broken =
            || Failure::new(Code::InvalidSpec, "a secret's token was changed by the script");
        if !secret.context().starts_with(&format!("{}/{}/", id.account, id.deployment)) {
            return Err(Failure::new(
                Code::Unauthorised,
                "the secret is that of another deployment",
            ));
        }
        let client = self.client.as_ref().ok_or_else(|| {
            Failure::new(Code::Unavailable, "this node has no identity manager that opens secrets")
        })?;
        let reply: UnsealReply = match secret {
            Secret::Sealed { context, sealed } => {
                let request =
                    UnsealRequest { context: context.to_owned(), sealed: sealed.to_owned() };
                client.post("/v1/unseal", &request).await?
            }
            Secret::Generated { context } => {
                let resource = context.parse().map_err(|_| broken())?;
                client.post("/v1/generate", &GenerateRequest { resource }).await?
            }
        };
        let secret =
            STANDARD.decode(&reply.secret).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let secret =
            secret.ok_or_else(|| Failure::new(Code::InvalidSpec, "the secret is not text"))?;
        // What a secret holds is never a token: it would be opened again.
        if has_secret(&secret) { Err(broken()) } else { Ok(secret) }
    }
}

fn collect_texts<'a>(value: &'a mut Value, texts: &mut Vec<&'a mut String>) {
    match value {
        Value::String(text) if has_secret(text) => texts.push(text),
        Value::Array(items) => items.iter_mut().for_each(|v| collect_texts(v, texts)),
        Value::Object(fields) => fields.values_mut().for_each(|v| collect_texts(v, texts)),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use rhizome_model::secret::generated_token;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn tokens_of_others_are_refused_before_anything_opens_them() {
        let unsealer = Unsealer::new(None);
        let id: ResourceId = "1/demo/web".parse().unwrap();
        let spec = json!({ "env": { "P": token("2/demo/password", "c2VhbGVk") } });
        assert_eq!(unsealer.open(&id, &spec).await.unwrap_err().code, Code::Unauthorised);
        let own = json!({ "env": { "P": token("1/demo/password", "c2VhbGVk") } });
        assert_eq!(unsealer.open(&id, &own).await.unwrap_err().code, Code::Unavailable);
        for (of, code) in [("2/demo/db", Code::Unauthorised), ("1/demo/db", Code::Unavailable)] {
            let generated = json!({ "password": generated_token(&of.parse().unwrap()) });
            assert_eq!(unsealer.open(&id, &generated).await.unwrap_err().code, code);
        }
        let plain = json!({ "env": { "P": "text" }, "command": ["a"] });
        assert_eq!(unsealer.open(&id, &plain).await.unwrap(), plain);
    }
}
