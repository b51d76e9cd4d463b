//! A client of the ledger, over the registrar's v4 routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method};
use rhizome_model::api::{AccountView, LedgerNodeView, NodeReport, NodeUsage, UsageReply};
use rhizome_model::availability::Share;
use rhizome_model::registrar::{
    self, Acknowledged, Farm, FarmCreated, NewAccount, NewFarm, Node, NodeCreated,
    NodeRegistration, Resources, UptimeReport, base64_key,
};
use rhizome_model::statement::LedgerView;
use rhizome_model::uptime::{UptimeBatch, UptimeReply};
use rhizome_model::{AccountId, Code, Failure, FarmId, KeyId, NodeId};
use rhizome_service::client::Signer;
use rhizome_service::clock;
use serde::de::DeserializeOwned;

use crate::ledgers::Ledgers;
use crate::sshsig::namespace;
use crate::{KeyError, SigningKey, UserKey, http_signature};

/// Rows per request of a list, and how many requests we make for one: a million rows.
const PAGE_SIZE: usize = 1000;
const MAX_PAGES: usize = 1000;
/// A statement that is needed now is not waited for longer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A ledger that does not answer a node that wants to reserve leaves time to ask another.
const USAGE_TIMEOUT: Duration = Duration::from_secs(4);

/// A node as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerNode {
    pub id: NodeId,
    pub farm: FarmId,
    pub account: AccountId,
    pub key: KeyId,
    pub supervisor_url: Option<String>,
    pub resources: Resources,
    pub online: bool,
    /// RFC 3339.
    pub last_seen: Option<String>,
}

impl From<Node> for LedgerNode {
    fn from(node: Node) -> Self {
        Self {
            id: node.node_id,
            farm: node.farm_id,
            account: node.twin_id,
            key: node.public_key,
            supervisor_url: node.supervisor_url,
            resources: node.resources,
            online: node.online,
            last_seen: node.last_seen,
        }
    }
}

/// Reads need no key; what changes something is done as the account of the key.
#[derive(Debug, Clone)]
pub struct LedgerClient {
    http: Ledgers,
    key: Option<SigningKey>,
    /// The account of `key`, once it is known; 0 before.
    account: Arc<AtomicU64>,
}

impl LedgerClient {
    /// `base_url` is such as `http://127.0.0.1:8080`, without `/v1`; or several with commas between:
    /// they are one ledger, and whichever answers will do.
    pub fn new(base_url: &str, key: Option<SigningKey>) -> Result<Self, Failure> {
        let account = Arc::new(AtomicU64::new(0));
        let mut http = Ledgers::new(base_url)?;
        if let Some(key) = key.clone() {
            let account = account.clone();
            let whole = http_signature::signer(key.clone());
            let signer: Signer =
                Arc::new(move |method: &Method, path: &str, query: Option<&str>, body: &[u8]| {
                    // Reads are open to everybody: nothing is signed that could be replayed.
                    if *method == Method::GET {
                        HeaderMap::new()
                    } else if path.starts_with("/v2/") {
                        whole(method, path, query, body)
                    } else {
                        x_auth(&key, &account)
                    }
                });
            http = http.signed(&signer);
        }
        Ok(Self { http, key, account })
    }

    /// Registers a key; the account it has already, if it has one.
    pub async fn create_account(&self, key: &SigningKey) -> Result<AccountView, Failure> {
        self.register_account(&UserKey::from(key.clone())).await
    }

    /// The same for a key that an agent may keep.
    pub async fn register_account(&self, key: &UserKey) -> Result<AccountView, Failure> {
        let public_key = base64_key::encode(&key.key_id());
        let timestamp = clock::now_secs();
        let challenge = registrar::account_challenge(timestamp, &public_key);
        let signature = key.sign(namespace::ACCOUNT, challenge.as_bytes()).map_err(unsigned)?;
        let signature = STANDARD.encode(signature);
        let request =
            NewAccount { timestamp, public_key, signature, relays: None, rmb_enc_key: None };
        let made = match self.http.post::<registrar::Account>("/v1/accounts", &request).await {
            Ok(account) => view(&account),
            Err(failure) if failure.code == Code::Conflict => {
                self.account_by_key(&key.key_id()).await?.ok_or(failure)?
            }
            Err(failure) => return Err(failure),
        };
        Ok(made)
    }

    pub async fn account_by_key(&self, key: &KeyId) -> Result<Option<AccountView>, Failure> {
        // The three characters of base64 that mean something else in a query.
        let text = base64_key::encode(key);
        let text = text.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        self.account(&format!("/v1/accounts?public_key={text}")).await
    }

    pub async fn account_by_id(&self, id: AccountId) -> Result<Option<AccountView>, Failure> {
        self.account(&format!("/v1/accounts?twin_id={id}")).await
    }

    async fn account(&self, path: &str) -> Result<Option<AccountView>, Failure> {
        Ok(found(self.http.get::<registrar::Account>(path).await)?.map(|a| view(&a)))
    }

    /// Finds or makes the account of this client's key.
    pub async fn ensure_account(&self) -> Result<AccountView, Failure> {
        let key = self.key()?;
        let account = match self.account_by_key(&key.key_id()).await? {
            Some(account) => account,
            None => self.create_account(key).await?,
        };
        self.account.store(account.id.0, Ordering::Relaxed);
        Ok(account)
    }

    /// Makes a farm of this client's account. `Code::Conflict` when the name is taken.
    pub async fn create_farm(&self, name: &str) -> Result<FarmId, Failure> {
        let request = NewFarm {
            farm_name: name.to_owned(),
            twin_id: self.own_account().await?,
            stellar_address: None,
            dedicated: false,
        };
        Ok(self.http.post::<FarmCreated>("/v1/farms", &request).await?.farm_id)
    }

    pub async fn farm_by_name(&self, name: &str) -> Result<Option<Farm>, Failure> {
        // The ledger searches for a part of the name; names are letters and digits.
        if !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Ok(None);
        }
        let farms: Vec<Farm> = self.list(&format!("/v1/farms?farm_name={name}")).await?;
        Ok(farms.into_iter().find(|f| f.farm_name == name))
    }

    pub async fn farms(&self) -> Result<Vec<Farm>, Failure> {
        self.list("/v1/farms?").await
    }

    pub async fn farm(&self, id: FarmId) -> Result<Option<Farm>, Failure> {
        found(self.http.get(&format!("/v1/farms/{id}")).await)
    }

    /// Registers the node of this client's account; `twin_id` is filled in.
    pub async fn register_node(&self, mut node: NodeRegistration) -> Result<NodeId, Failure> {
        node.twin_id = self.own_account().await?;
        Ok(self.http.post::<NodeCreated>("/v1/nodes", &node).await?.node_id)
    }

    pub async fn update_node(&self, id: NodeId, node: &NodeRegistration) -> Result<(), Failure> {
        self.own_account().await?;
        let body = serde_json::to_vec(node).map_err(|e| {
            Failure::new(Code::Internal, format!("cannot write the node's facts: {e}"))
        })?;
        self.send::<Acknowledged>(Method::PATCH, &format!("/v1/nodes/{id}"), body, None).await?;
        Ok(())
    }

    pub async fn report_uptime(&self, id: NodeId, secs: u64) -> Result<(), Failure> {
        self.own_account().await?;
        let report = UptimeReport { uptime: secs, timestamp: clock::now_secs() };
        self.http.post::<Acknowledged>(&format!("/v1/nodes/{id}/uptime"), &report).await?;
        Ok(())
    }

    /// Reports that were made before and can be sent again.
    pub async fn report_uptimes(
        &self,
        id: NodeId,
        batch: &UptimeBatch,
    ) -> Result<UptimeReply, Failure> {
        self.http.post(&format!("/v2/nodes/{id}/uptime"), batch).await
    }

    /// The nodes that registered from a machine with this serial number.
    pub async fn nodes_of_machine(&self, serial_number: &str) -> Result<Vec<LedgerNode>, Failure> {
        let nodes: Vec<Node> = self.list("/v1/nodes?").await?;
        let of_it = nodes.into_iter().filter(|node| node.serial_number == serial_number);
        Ok(of_it.map(Into::into).collect())
    }

    pub async fn nodes(&self) -> Result<Vec<LedgerNode>, Failure> {
        let nodes: Vec<Node> = self.list("/v1/nodes?").await?;
        Ok(nodes.into_iter().map(Into::into).collect())
    }

    /// What each node was up of the last 30 days, from 0 to 1.
    pub async fn availability(&self) -> Result<Vec<Share>, Failure> {
        self.list("/v2/availability?").await
    }

    pub async fn node(&self, id: NodeId) -> Result<Option<LedgerNode>, Failure> {
        let node = found(self.http.get::<Node>(&format!("/v1/nodes/{id}")).await)?;
        Ok(node.map(Into::into))
    }

    pub async fn node_by_account(&self, account: AccountId) -> Result<Option<LedgerNode>, Failure> {
        let path = format!("/v1/nodes?twin_id={account}&page=1&size=1");
        Ok(self.http.get::<Vec<Node>>(&path).await?.pop().map(Into::into))
    }

    /// What a node has free, and how it is; signed with its key.
    pub async fn report_status(&self, id: NodeId, report: &NodeReport) -> Result<(), Failure> {
        self.http.post::<LedgerNodeView>(&format!("/v2/nodes/{id}/status"), report).await?;
        Ok(())
    }

    /// What an account's deployments reserve of a node; signed with its key. It may be said again.
    pub async fn node_usage(&self, id: NodeId, usage: &NodeUsage) -> Result<UsageReply, Failure> {
        let body = serde_json::to_vec(usage).map_err(|e| {
            Failure::new(Code::Internal, format!("cannot write what an account uses: {e}"))
        })?;
        self.send(Method::POST, &format!("/v2/nodes/{id}/usage"), body, Some(USAGE_TIMEOUT)).await
    }

    /// Which ledger it is: the key that it signs statements with, its network.
    pub async fn about(&self) -> Result<LedgerView, Failure> {
        self.http.get("/v2/ledger").await
    }

    /// What the ledger signed, as it came.
    pub async fn signed_bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let reply = self.http.call(Method::GET, path, Vec::new(), HeaderMap::new(), Some(TIMEOUT));
        let bytes = reply.await?.bytes().await.map_err(|e| {
            Failure::new(Code::Unavailable, format!("the ledger's answer to {path} broke off: {e}"))
        })?;
        Ok(bytes.into())
    }

    /// All rows of a list; `path` ends where further query parameters can follow.
    async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Failure> {
        let mut rows = Vec::new();
        for page in 1..=MAX_PAGES {
            let part: Vec<T> =
                self.http.get(&format!("{path}&page={page}&size={PAGE_SIZE}")).await?;
            let last = part.len() < PAGE_SIZE;
            rows.extend(part);
            if last {
                return Ok(rows);
            }
        }
        Err(Failure::new(
            Code::Internal,
            format!("the ledger's list {path} has more than {} rows", MAX_PAGES * PAGE_SIZE),
        ))
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        timeout: Option<Duration>,
    ) -> Result<T, Failure> {
        let reply = self.http.call(method, path, body, HeaderMap::new(), timeout).await?;
        let bytes = reply.bytes().await.map_err(|e| {
            Failure::new(Code::Unavailable, format!("the ledger's answer to {path} broke off: {e}"))
        })?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::new(
                Code::Internal,
                format!("the ledger answered {path} with other words: {e}"),
            )
        })
    }

    async fn own_account(&self) -> Result<AccountId, Failure> {
        match self.account.load(Ordering::Relaxed) {
            0 => Ok(self.ensure_account().await?.id),
            known => Ok(AccountId(known)),
        }
    }

    fn key(&self) -> Result<&SigningKey, Failure> {
        self.key.as_ref().ok_or_else(|| {
            Failure::new(Code::BadRequest, "changing something in the ledger needs a key")
        })
    }
}

fn unsigned(error: KeyError) -> Failure {
    Failure::new(Code::AgentRefused, error.to_string())
}

fn view(account: &registrar::Account) -> AccountView {
    AccountView { id: account.twin_id, key: account.public_key }
}

fn found<T>(result: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(failure) if failure.code == Code::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn x_auth(key: &SigningKey, account: &AtomicU64) -> HeaderMap {
    let account = account.load(Ordering::Relaxed);
    let mut headers = HeaderMap::new();
    if account != 0 {
        let challenge = registrar::auth_challenge(clock::now_secs(), AccountId(account));
        let signature = STANDARD.encode(key.sign(challenge.as_bytes()));
        let value = format!("{}:{signature}", STANDARD.encode(challenge));
        headers
            .insert("x-auth", HeaderValue::from_str(&value).expect("base64 can stand in a header"));
    }
    headers
}
