//! Nothing that was acknowledged is lost when the ledger, or its database, is killed under load.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use rhizome_identity::SigningKey;
use rhizome_ledger::{DatabaseUrl, LedgerConfig};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::{DEADLINE, Home, Ledger, new_account, now};

/// What writes at a time: half of them make accounts, half report.
const WRITERS: u64 = 16;
const LOAD: Duration = Duration::from_millis(700);
const SERVE: &str = "RHIZOME_TEST_SERVE";

/// The ledger process of the test below, which is this program again.
#[tokio::test]
#[ignore = "it serves until it is killed"]
async fn serve() {
    let arguments: Value = serde_json::from_str(&std::env::var(SERVE).unwrap()).unwrap();
    let text = |name: &str| arguments[name].as_str().unwrap().to_owned();
    let listener = rhizome_service::http::bind(text("listen").parse().unwrap()).await.unwrap();
    let config = LedgerConfig {
        database: text("database").parse().unwrap(),
        signing_key: text("signing_key").into(),
        network: "dev".into(),
        admin: rhizome_ledger::ADMIN,
        statement_lifetime: rhizome_ledger::STATEMENT_LIFETIME,
    };
    rhizome_ledger::run(config, listener, CancellationToken::new()).await.unwrap();
}

struct Process(Child);

impl Process {
    fn start(home: &Home, listen: &str) -> Self {
        let database = match &home.url {
            DatabaseUrl::Sqlite(file) => format!("sqlite:{}", file.display()),
            DatabaseUrl::Postgres(url) => url.clone(),
        };
        let key = home.config().signing_key;
        let arguments = json!({ "listen": listen, "database": database, "signing_key": key });
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["it::kill::serve", "--exact", "--ignored"])
            .env(SERVE, arguments.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        self.0.wait().unwrap();
    }
}

/// What was acknowledged.
#[derive(Default)]
pub struct Written {
    accounts: Vec<(SigningKey, u64)>,
    /// Of each node that reports: its key, its id, and its highest sequence.
    reported: Vec<(SigningKey, u64, u64)>,
}

fn boot(node: u64) -> String {
    format!("{node:08x}-0000-4000-8000-000000000000")
}

fn report(node: u64, sequence: u64) -> String {
    let report = json!({ "boot_id": boot(node), "sequence": sequence,
        "uptime_s": 100 + sequence, "at": now() });
    json!({ "reports": [report] }).to_string()
}

pub async fn is_up(ledger: &Ledger) {
    let begun = Instant::now();
    while ledger.try_call(Method::GET, "/healthz", None, String::new()).await.is_none() {
        assert!(begun.elapsed() < DEADLINE, "it does not come up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A node for each writer that reports.
pub async fn nodes(ledger: &Ledger) -> Vec<(SigningKey, u64)> {
    let owner = ledger.account(1).await;
    ledger.farm(&owner, "farm").await;
    let mut nodes = Vec::new();
    for n in 0..WRITERS / 2 {
        let account = ledger.account(100 + n as u8).await;
        let id = ledger.node(&account, 1).await;
        nodes.push((account.key, id));
    }
    nodes
}

/// Changes that are made while something is killed.
pub struct Load {
    stop: Arc<AtomicBool>,
    writing: tokio::task::JoinHandle<Written>,
}

impl Load {
    /// Under way when this returns.
    pub async fn begin(
        ledger: &Arc<Ledger>,
        nodes: &[(SigningKey, u64)],
        seeds: &Arc<AtomicU64>,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ledger, seeds, nodes, told) =
            (ledger.clone(), seeds.clone(), nodes.to_vec(), stop.clone());
        let writing = tokio::spawn(async move { load(ledger, &nodes, seeds, told).await });
        tokio::time::sleep(LOAD).await;
        Self { stop, writing }
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// What was acknowledged.
    pub async fn written(self) -> Written {
        self.writing.await.unwrap()
    }
}

/// Writes from many sides until told to stop; errors are no acknowledgements.
async fn load(
    ledger: Arc<Ledger>,
    nodes: &[(SigningKey, u64)],
    seeds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) -> Written {
    let mut writers = JoinSet::new();
    for (key, node) in nodes.iter().cloned() {
        let (ledger, stop) = (ledger.clone(), stop.clone());
        writers.spawn(async move {
            // Behind what an earlier round has reported.
            let mut sequence = seeds_of_round();
            let mut highest = 0;
            while !stop.load(Ordering::Relaxed) {
                sequence += 1;
                let path = format!("/v2/nodes/{node}/uptime");
                let answer = ledger.try_signed(Method::POST, &path, &key, report(node, sequence));
                if let Some((200, reply)) = answer.await {
                    assert_eq!(reply["stored"], 1, "{reply}");
                    highest = sequence;
                }
            }
            Written { accounts: Vec::new(), reported: vec![(key, node, highest)] }
        });
    }
    for _ in 0..WRITERS / 2 {
        let (ledger, stop, seeds) = (ledger.clone(), stop.clone(), seeds.clone());
        writers.spawn(async move {
            let mut written = Written::default();
            while !stop.load(Ordering::Relaxed) {
                let mut seed = [9; 32];
                seed[..8].copy_from_slice(&seeds.fetch_add(1, Ordering::Relaxed).to_le_bytes());
                let key = SigningKey::from_seed(seed);
                let body = new_account(&key, now()).to_string();
                let answer = ledger.try_call(Method::POST, "/v1/accounts", None, body).await;
                if let Some((201, account)) = answer {
                    written.accounts.push((key, account["twin_id"].as_u64().unwrap()));
                }
            }
            written
        });
    }
    let mut all = Written::default();
    while let Some(written) = writers.join_next().await {
        let written = written.unwrap();
        all.accounts.extend(written.accounts);
        all.reported.extend(written.reported);
    }
    all
}

/// Sequences grow from round to round.
fn seeds_of_round() -> u64 {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_millis() as u64 * 1000
}

pub async fn nothing_is_lost(ledger: &Ledger, written: &Written) {
    assert!(written.accounts.len() > 10, "there was no load: {}", written.accounts.len());
    assert!(written.reported.iter().any(|(_, _, highest)| *highest > 0), "nobody reported");
    for (key, id) in &written.accounts {
        let (status, account) = ledger.get(&format!("/v1/accounts?twin_id={id}")).await;
        assert_eq!((status, &account["public_key"]), (200, &crate::harness::base64_of(key).into()));
    }
    for (key, node, highest) in written.reported.iter().filter(|(_, _, highest)| *highest > 0) {
        let path = format!("/v2/nodes/{node}/uptime");
        let (status, reply) =
            ledger.signed(Method::POST, &path, key, report(*node, *highest)).await;
        assert_eq!(
            (status, &reply["known"]),
            (200, &json!(1)),
            "node {node} at {highest}: {reply}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_ledger_has_lost_nothing() {
    let home = Home::new().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = free.local_addr().unwrap().to_string();
    drop(free);
    let mut process = Process::start(&home, &listen);
    let ledger = Arc::new(Ledger::elsewhere(listen.parse().unwrap(), home));
    is_up(&ledger).await;
    let nodes = nodes(&ledger).await;
    let seeds = Arc::new(AtomicU64::new(0));
    for _ in 0..3 {
        let load = Load::begin(&ledger, &nodes, &seeds).await;
        drop(process);
        load.stop();
        let written = load.written().await;
        process = Process::start(&ledger.home, &listen);
        is_up(&ledger).await;
        nothing_is_lost(&ledger, &written).await;
    }
    drop(process);
}
