//! The ledger's own routes (`/v2`), as the commands call them: every change is signed.

use http::{HeaderMap, Method};
use rhizome_identity::{LedgerClient, UserKey, http_signature};
use rhizome_model::{AccountId, Code, Failure, FarmId};
use rhizome_service::Client;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cli::Globals;
use crate::commands::key;
use crate::error::misuse;
use crate::profile::Profile;

/// The key, and the ledger as the key's account sees it.
pub struct Ledger {
    client: Client,
    registrar: LedgerClient,
    pub key: UserKey,
    pub network: String,
}

impl Ledger {
    pub fn open(globals: &Globals) -> Result<Self, Failure> {
        let profile = Profile::load(globals)?;
        let key = key::load(&profile.key)?;
        let url = profile.ledger()?;
        // A change goes to one ledger: sent to the next, it might be made twice.
        let first = url.split(',').next().unwrap_or(url);
        let client = Client::new("the ledger", first)?.signed(http_signature::signer(key.clone()));
        let registrar = LedgerClient::new(url, None)?;
        Ok(Self { client, registrar, key, network: profile.network })
    }

    /// The account of the key.
    pub async fn account(&self) -> Result<AccountId, Failure> {
        let key = self.key.key_id();
        let account = self.registrar.account_by_key(&key).await?;
        account.map(|account| account.id).ok_or_else(|| {
            Failure::new(
                Code::UnknownAccount,
                format!("no account has the key {key}: run `rhizome account register` first"),
            )
        })
    }

    /// A farm by its number or its name.
    pub async fn farm(&self, wanted: &str) -> Result<FarmId, Failure> {
        if let Ok(id) = wanted.parse() {
            return Ok(id);
        }
        let farm = self.registrar.farm_by_name(wanted).await?;
        farm.map(|farm| farm.farm_id)
            .ok_or_else(|| Failure::new(Code::NotFound, format!("there is no farm '{wanted}'")))
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.client.get(path).await
    }

    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.client.put(path, body).await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.client.post(path, body).await
    }

    /// Sends an envelope as it was signed.
    pub async fn post_envelope<T: DeserializeOwned>(
        &self,
        path: &str,
        envelope: String,
    ) -> Result<T, Failure> {
        self.client.post_bytes(path, envelope.into_bytes()).await
    }

    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let reply = self.client.call(Method::DELETE, path, Vec::new(), HeaderMap::new(), None);
        let bytes = reply.await?.bytes().await;
        let bytes =
            bytes.map_err(|e| Failure::new(Code::Unavailable, format!("the ledger: {e}")))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| misuse(format!("the ledger answered what we do not understand: {e}")))
    }
}
