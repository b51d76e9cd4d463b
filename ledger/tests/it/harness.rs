//! A ledger in this process, and calls as any HTTP client makes them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use rhizome_database::{DatabaseUrl, PostgresServer, Store};
use rhizome_identity::SigningKey;
use rhizome_ledger::LedgerConfig;
use rhizome_model::Failure;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const DEADLINE: Duration = Duration::from_secs(20);

/// A database of the store that is tested, new and empty. It is gone when this is.
pub struct Home {
    pub url: DatabaseUrl,
    _file: Option<tempfile::TempDir>,
    keys: tempfile::TempDir,
    #[allow(dead_code, reason = "only where it is a process of its own it can be killed")]
    pub server: Option<PostgresServer>,
}

impl Home {
    pub async fn new() -> Self {
        match crate::STORE {
            Store::Sqlite => Self::of_file(tempfile::tempdir().unwrap()),
            Store::Postgres => Self::new_postgres().await,
        }
    }

    pub async fn new_postgres() -> Self {
        // A kill loses nothing of what the kernel has, and tests cut no power.
        let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres-cluster");
        let server = PostgresServer::start(&["fsync=off"], Some(&template)).await.unwrap();
        let keys = tempfile::tempdir().unwrap();
        Self { url: server.database(), _file: None, keys, server: Some(server) }
    }

    /// The same database, whose ledger signs with the key of another.
    pub fn with_keys_of(self, other: &Self) -> Self {
        std::fs::copy(other.config().signing_key, self.config().signing_key).unwrap();
        self
    }

    pub fn of_file(folder: tempfile::TempDir) -> Self {
        let url = DatabaseUrl::sqlite(folder.path().join("ledger.sqlite"));
        let keys = tempfile::tempdir().unwrap();
        Self { url, _file: Some(folder), keys, server: None }
    }

    pub fn config(&self) -> LedgerConfig {
        LedgerConfig {
            database: self.url.clone(),
            network: "dev".into(),
            admin: rhizome_ledger::ADMIN,
            signing_key: self.keys.path().join("ledger.key"),
            statement_lifetime: rhizome_ledger::STATEMENT_LIFETIME,
        }
    }
}

pub struct Ledger {
    pub address: SocketAddr,
    pub home: Home,
    http: reqwest::Client,
    stop: CancellationToken,
    task: Option<JoinHandle<Result<(), Failure>>>,
}

/// A status and the JSON that came with it.
pub type Answer = (u16, Value);

impl Ledger {
    pub async fn start() -> Self {
        Self::start_in(Home::new().await, "127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn start_in(home: Home, listen: SocketAddr) -> Self {
        let listener = rhizome_service::http::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let config = home.config();
        let task = tokio::spawn(rhizome_ledger::run(config, listener, stop.clone()));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, home, http, stop, task: Some(task) }
    }

    /// Stops it and starts it again on the same files and the same port.
    pub async fn restart(self) -> Self {
        let address = self.address;
        let home = self.stop().await;
        Self::start_in(home, address).await
    }

    pub async fn stop(mut self) -> Home {
        self.stop.cancel();
        let task = self.task.take().unwrap();
        tokio::time::timeout(DEADLINE, task).await.expect("it did not stop").unwrap().unwrap();
        self.home
    }

    /// One more ledger on the same database, and what stops it.
    pub async fn beside(&self) -> (Self, CancellationToken) {
        let listener = rhizome_service::http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(rhizome_ledger::run(self.home.config(), listener, stop.clone()));
        // The database stays the first one's.
        let home = Home::of_file(tempfile::tempdir().unwrap());
        let http = self.http.clone();
        (Self { address, home, http, stop: stop.clone(), task: None }, stop)
    }

    /// A ledger that somebody else has started.
    pub fn elsewhere(address: SocketAddr, home: Home) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { address, home, http, stop: CancellationToken::new(), task: None }
    }

    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None, None).await
    }

    /// A call signed with a key as `/v2` wants it.
    pub async fn signed(
        &self,
        method: Method,
        path: &str,
        key: &SigningKey,
        body: impl Into<String>,
    ) -> Answer {
        let body = body.into();
        let headers = sign(key, &method, path, &body);
        self.with_headers(method, path, headers, body).await
    }

    pub async fn with_headers(
        &self,
        method: Method,
        path: &str,
        headers: http::HeaderMap,
        body: String,
    ) -> Answer {
        let request = self.http.request(method, format!("{}{path}", self.base())).headers(headers);
        let response = request.body(body).send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }

    /// The status and the body of a signed call, whatever the body is.
    pub async fn text(
        &self,
        method: Method,
        path: &str,
        who: &Caller,
        body: &Value,
    ) -> (u16, String) {
        let auth = x_auth(&who.key, who.id, now());
        let request = self.http.request(method, format!("{}{path}", self.base()));
        let response = request.header("X-Auth", auth).body(body.to_string()).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// A page of a list, and how many there are in all.
    pub async fn list(&self, path: &str) -> (usize, Vec<Value>) {
        let response = self.http.get(format!("{}{path}", self.base())).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let total = response.headers()["x-total-count"].to_str().unwrap().parse().unwrap();
        (total, response.json().await.unwrap())
    }

    /// A call that may come to nothing: no answer, or none that is JSON.
    pub async fn try_call(
        &self,
        method: Method,
        path: &str,
        headers: Option<http::HeaderMap>,
        body: String,
    ) -> Option<Answer> {
        let request = self.http.request(method, format!("{}{path}", self.base()));
        let request = request.headers(headers.unwrap_or_default()).body(body);
        let response = request.timeout(DEADLINE).send().await.ok()?;
        Some((response.status().as_u16(), response.json().await.ok()?))
    }

    pub async fn try_signed(
        &self,
        method: Method,
        path: &str,
        key: &SigningKey,
        body: String,
    ) -> Option<Answer> {
        let headers = sign(key, &method, path, &body);
        self.try_call(method, path, Some(headers), body).await
    }

    /// A call with the JSON of `body`, signed as `who`.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        who: Option<&Caller>,
        body: &Value,
    ) -> Answer {
        let auth = who.map(|caller| x_auth(&caller.key, caller.id, now()));
        self.call(method, path, auth.as_deref(), Some(body.to_string())).await
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        auth: Option<&str>,
        body: Option<String>,
    ) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.base()));
        if let Some(auth) = auth {
            request = request.header("X-Auth", auth);
        }
        // No content type: gin reads a body as JSON without one, so we must too.
        let response = request.body(body.unwrap_or_default()).send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let json = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{status} with a body that is no JSON ({e}): {text}"));
        (status, json)
    }

    /// An account of the key with this seed.
    pub async fn account(&self, seed: u8) -> Caller {
        self.account_of(SigningKey::from_seed([seed; 32])).await
    }

    pub async fn account_of(&self, key: SigningKey) -> Caller {
        let (status, account) =
            self.send(Method::POST, "/v1/accounts", None, &new_account(&key, now())).await;
        assert_eq!(status, 201, "{account}");
        Caller { key, id: account["twin_id"].as_u64().unwrap() }
    }

    pub async fn farm(&self, owner: &Caller, name: &str) -> u64 {
        let farm = json!({ "farm_name": name, "twin_id": owner.id, "stellar_address": stellar() });
        let (status, made) = self.send(Method::POST, "/v1/farms", Some(owner), &farm).await;
        assert_eq!(status, 201, "{made}");
        made["farm_id"].as_u64().unwrap()
    }

    pub async fn node(&self, owner: &Caller, farm: u64) -> u64 {
        let (status, made) =
            self.send(Method::POST, "/v1/nodes", Some(owner), &new_node(owner.id, farm)).await;
        assert_eq!(status, 201, "{made}");
        made["node_id"].as_u64().unwrap()
    }
}

/// An account and its key.
pub struct Caller {
    pub key: SigningKey,
    pub id: u64,
}

/// The headers of RFC 9421 for a request.
pub fn sign(key: &SigningKey, method: &Method, path: &str, body: &str) -> http::HeaderMap {
    let (route, query) = path.split_once('?').map_or((path, None), |(r, q)| (r, Some(q)));
    let headers =
        rhizome_identity::http_signature::sign(key, method, route, query, body.as_bytes(), now());
    headers.unwrap().into_iter().collect()
}

pub fn now() -> i64 {
    rhizome_service::clock::now_secs()
}

pub fn stellar() -> String {
    format!("G{}", "A2".repeat(28))[..56].to_owned()
}

pub fn base64_of(key: &SigningKey) -> String {
    STANDARD.encode(key.key_id().0)
}

pub fn new_account(key: &SigningKey, timestamp: i64) -> Value {
    let public_key = base64_of(key);
    let signature = STANDARD.encode(key.sign(format!("{timestamp}:{public_key}").as_bytes()));
    json!({ "timestamp": timestamp, "public_key": public_key, "signature": signature })
}

pub fn new_node(account: u64, farm: u64) -> Value {
    json!({
        "twin_id": account, "farm_id": farm, "serial_number": "S1", "secure_boot": true,
        "virtualized": true, "location": { "country": "Belgium", "city": "Ghent",
            "longitude": "3.7", "latitude": "51.0" },
        "resources": { "hru": 1, "sru": 2, "cru": 3, "mru": u64::from(u32::MAX) },
        "interfaces": [{ "name": "eth0", "mac": "aa:bb", "ips": ["10.0.0.2", "fd00::2"] }],
        // What v4's client sends besides.
        "uptime": null, "last_seen": null, "online": false, "node_id": 0, "Approved": false,
    })
}

pub fn x_auth(key: &SigningKey, account: u64, timestamp: i64) -> String {
    let challenge = format!("{timestamp}:{account}");
    let signature = STANDARD.encode(key.sign(challenge.as_bytes()));
    format!("{}:{signature}", STANDARD.encode(challenge))
}

/// The text of an error, of which the code must be given as well.
pub fn error(answer: &Answer) -> (u16, &str) {
    assert!(answer.1["code"].is_string(), "no code: {}", answer.1);
    (answer.0, answer.1["error"].as_str().expect("an error is a text"))
}
