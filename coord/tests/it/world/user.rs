//! Somebody with a key.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::{Stream, StreamExt};
use rhizome_identity::{SigningKey, http_signature};
use rhizome_model::api::{DeploymentView, Submitted};
use rhizome_model::{Event, Failure, Phase, payload_type};
use rhizome_service::Client;
use serde_json::{Value, json};

use super::until;

pub struct User {
    pub account: u64,
    pub key: SigningKey,
    /// Signs what it asks.
    pub client: Client,
    pub plain: Client,
}

impl User {
    pub fn new(account: u64) -> Self {
        Self::with_key(account, SigningKey::from_seed([u8::try_from(account).unwrap(); 32]))
    }

    pub fn with_key(account: u64, key: SigningKey) -> Self {
        let plain = Client::new("coord", "http://127.0.0.1:1").unwrap();
        Self { account, key, client: plain.clone(), plain }
    }

    pub fn of(self, url: &str) -> Self {
        let plain = Client::new("coord", url).unwrap();
        let client = plain.clone().signed(http_signature::signer(self.key.clone()));
        Self { client, plain, ..self }
    }

    pub fn document(&self, name: &str, version: u64, nodes: &[u64]) -> Value {
        json!({
            "account": self.account, "name": name, "version": version, "network": "dev",
            "script": "output(\"ok\", 1);", "placement": { "nodes": nodes },
            "expires": now_secs() + 3600, "nonce": nonce(),
        })
    }

    pub fn sign(&self, document: &Value) -> Vec<u8> {
        let payload = document.to_string();
        let envelope = self.key.sign_envelope(payload_type::DEPLOYMENT, payload.as_bytes());
        envelope.to_json().into_bytes()
    }

    pub fn sign_delete(&self, name: &str, version: u64) -> Vec<u8> {
        let payload = json!({
            "account": self.account, "name": name, "version": version, "network": "dev",
            "expires": now_secs() + 3600, "nonce": nonce(),
        });
        let envelope = self.key.sign_envelope(payload_type::DELETE, payload.to_string().as_bytes());
        envelope.to_json().into_bytes()
    }

    pub async fn submit(&self, envelope: Vec<u8>) -> Result<Submitted, Failure> {
        self.plain.post_bytes("/v1/envelopes", envelope).await
    }

    pub async fn deploy(&self, name: &str, version: u64, nodes: &[u64]) -> Submitted {
        self.submit(self.sign(&self.document(name, version, nodes))).await.unwrap()
    }

    pub async fn show(&self, name: &str) -> Result<DeploymentView, Failure> {
        self.client.get(&format!("/v1/deployments/{}/{name}", self.account)).await
    }

    /// Waits until the deployment is so.
    pub async fn sees(&self, name: &str, version: u64, phase: Phase) -> DeploymentView {
        until(&format!("{name} version {version} is {phase}"), || async {
            let view = self.show(name).await.ok()?;
            (view.phase == phase && view.version.0 == version).then_some(view)
        })
        .await
    }

    pub async fn events(&self, name: &str) -> Vec<Event> {
        self.events_after(name, 0).await
    }

    pub async fn events_after(&self, name: &str, after: u64) -> Vec<Event> {
        let path = format!("/v1/deployments/{}/{name}/events", self.account);
        let query = format!("after={after}");
        let mut headers = http::HeaderMap::new();
        headers.insert("accept", "application/json".parse().unwrap());
        let signer = http_signature::signer(self.key.clone());
        headers.extend(signer(&http::Method::GET, &path, Some(&query), b""));
        let path = format!("{path}?{query}");
        let answer = self.plain.call(http::Method::GET, &path, Vec::new(), headers, None).await;
        serde_json::from_slice(&answer.unwrap().bytes().await.unwrap()).unwrap()
    }

    /// Numbered events as they come.
    pub async fn follow(
        &self,
        name: &str,
        after: u64,
    ) -> Result<impl Stream<Item = Result<(u64, Event), Failure>> + use<>, Failure> {
        let path = format!("/v1/deployments/{}/{name}/events", self.account);
        let stream = self.client.events(&path, Some(&after.to_string())).await?;
        Ok(stream.filter_map(async |item| match item {
            Ok(e) if e.event == "trimmed" => None,
            Ok(e) => Some(Ok((e.id.parse().unwrap(), serde_json::from_str(&e.data).unwrap()))),
            Err(failure) => Some(Err(failure)),
        }))
    }
}

pub fn now_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn nonce() -> String {
    let bytes = *SigningKey::generate()
        .unwrap()
        .key_id()
        .to_string()
        .as_bytes()
        .first_chunk::<32>()
        .unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}
