//! A node's identity manager against a real ledger.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use rhizome_identity::manager::{Config, Facts, FactsSource, FarmChoice, Manager};
use rhizome_identity::{LedgerClient, SigningKey, seal};
use rhizome_model::api::{NodeIdentity, NodeUsage, UnsealReply, UnsealRequest, UsageReply};
use rhizome_model::registrar::{Interface, Location, Resources};
use rhizome_model::uptime::{BootReport, UptimeBatch};
use rhizome_model::{AccountId, Bytes, Capacity, Code, Cpu, Failure, KeyId};
use rhizome_service::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::{DEADLINE, Home, Ledger};

fn facts() -> Facts {
    facts_of("S1")
}

fn facts_of(serial: &str) -> Facts {
    Facts {
        resources: Resources { hru: 0, sru: 1 << 40, cru: 4, mru: 1 << 33 },
        processor: "a processor".into(),
        disks: vec![],
        interfaces: vec![Interface { name: "eth0".into(), mac: "aa".into(), ips: vec![] }],
        serial_number: serial.into(),
        secure_boot: false,
        virtualized: true,
    }
}

fn config(dir: &Path, ledger: &str) -> Config {
    Config {
        state: dir.join("identity"),
        socket: dir.join("identity.sock"),
        ledger: ledger.to_owned(),
        farm: FarmChoice::Name("farm".into()),
        supervisor_url: Some("http://127.0.0.1:9".into()),
        location: Location::default(),
        // Facts are looked at whenever a report is due.
        uptime_interval: Duration::from_millis(50),
        state_pools: vec![],
        shared_socket: None,
        grants: vec![],
        traces: vec![],
        new_identity: false,
    }
}

struct Running {
    key: KeyId,
    secret: SigningKey,
    identity: watch::Receiver<NodeIdentity>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Failure>>,
}

impl Running {
    fn start(config: Config) -> Self {
        Self::start_with(config, Arc::new(|| Ok(facts())))
    }

    fn start_with(config: Config, facts: FactsSource) -> Self {
        let manager = Manager::open(config, facts, None).unwrap();
        let (key, identity, stop) =
            (manager.key_id(), manager.identity(), CancellationToken::new());
        let secret = manager.key().clone();
        let task = tokio::spawn(manager.run(stop.clone()));
        Self { key, secret, identity, stop, task }
    }

    async fn until(&mut self, level: impl FnMut(&NodeIdentity) -> bool) -> NodeIdentity {
        let waiting = tokio::time::timeout(DEADLINE, self.identity.wait_for(level));
        waiting.await.expect("it did not come to that").unwrap().clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.expect("it did not stop").unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_node_registers_by_itself_and_keeps_its_id() {
    let ledger = Ledger::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut first = Running::start(config(dir.path(), &ledger.base()));
    let identity = first.until(|i| i.registered.is_some()).await;
    let registered = identity.registered.unwrap();
    assert_eq!(identity.address, rhizome_identity::mycelium_address(&first.key).unwrap());
    let key = first.key;
    first.stop().await;
    assert!(!dir.path().join("identity.sock").exists(), "the socket stayed behind");

    let client = LedgerClient::new(&ledger.base(), None).unwrap();
    let node = client.node(registered.node).await.unwrap().unwrap();
    assert!(node.online, "it has not reported its uptime");
    assert_eq!((node.key, node.account, node.farm), (key, registered.account, registered.farm));
    assert_eq!(node.supervisor_url.as_deref(), Some("http://127.0.0.1:9"));

    let mut second = Running::start(config(dir.path(), &ledger.base()));
    assert_eq!(second.identity.borrow().registered, Some(registered), "it knows before it asks");
    second.until(|i| i.problem.is_none()).await;
    assert_eq!(second.key, key);
    second.stop().await;
    assert_eq!(client.nodes().await.unwrap().len(), 1);
    assert_eq!(client.farms().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_ledger_that_comes_up_late_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let listener = rhizome_service::http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut node = Running::start(config(dir.path(), &format!("http://{address}")));
    let identity = node.until(|i| i.problem.is_some()).await;
    assert!(identity.problem.unwrap().contains("cannot reach ledger"), "it must say why");
    let ledger = Ledger::start_in(Home::new().await, address).await;
    let identity = node.until(|i| i.registered.is_some()).await;
    assert_eq!(identity.problem, None);
    node.stop().await;
    ledger.stop().await;
}

#[tokio::test]
async fn a_ledger_that_restarts_or_forgets_is_told_again() {
    let ledger = Ledger::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut node = Running::start(config(dir.path(), &ledger.base()));
    let before = node.until(|i| i.registered.is_some()).await.registered;
    let address = ledger.address;
    let kept = ledger.stop().await;
    node.until(|i| i.problem.is_some()).await;
    let ledger = Ledger::start_in(kept, address).await;
    let after = node.until(|i| i.problem.is_none()).await.registered;
    assert_eq!(after, before);

    ledger.stop().await;
    node.until(|i| i.problem.is_some()).await;
    let ledger = Ledger::start_in(Home::new().await, address).await;
    // Another account came first, so that the ids differ.
    ledger.account(77).await;
    node.until(|i| i.problem.is_none()).await;
    let client = LedgerClient::new(&ledger.base(), None).unwrap();
    let nodes = client.nodes().await.unwrap();
    assert_eq!(nodes.iter().map(|n| n.key).collect::<Vec<_>>(), [node.key]);
    node.stop().await;
}

#[tokio::test]
async fn reports_of_a_time_without_a_ledger_are_filled_in() {
    let ledger = Ledger::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut node = Running::start(config(dir.path(), &ledger.base()));
    let registered = node.until(|i| i.registered.is_some()).await.registered.unwrap();
    let address = ledger.address;
    let kept = ledger.stop().await;
    // The node restarts meanwhile: what waits is on disk.
    let waiting = node.until(|i| i.waiting_reports >= 3).await.waiting_reports;
    node.stop().await;
    let mut node = Running::start(config(dir.path(), &format!("http://{address}")));
    node.until(|i| i.waiting_reports > waiting).await;
    let spool = std::fs::read_to_string(dir.path().join("identity/uptime.json")).unwrap();
    let spool: Value = serde_json::from_str(&spool).unwrap();
    let ledger = Ledger::start_in(kept, address).await;
    node.until(|i| i.problem.is_none() && i.waiting_reports == 0).await;
    let client = LedgerClient::new(&ledger.base(), Some(node.secret.clone())).unwrap();
    node.stop().await;

    // All that waited is known there: sending it again stores nothing.
    let reports = serde_json::from_value::<Vec<BootReport>>(spool["reports"].clone()).unwrap();
    let sent = reports.len() as u64;
    assert!(sent > waiting, "{reports:?}");
    let highest = reports.last().unwrap().sequence;
    let reply = client.report_uptimes(registered.node, &UptimeBatch { reports }).await.unwrap();
    assert_eq!((reply.stored, reply.known, reply.refused.len()), (0, sent, 0));
    assert!(reply.highest >= highest);
}

#[tokio::test]
async fn changed_facts_reach_the_ledger() {
    let ledger = Ledger::start().await;
    let dir = tempfile::tempdir().unwrap();
    let shared = Arc::new(Mutex::new(facts()));
    let source = shared.clone();
    let source: FactsSource = Arc::new(move || Ok(source.lock().unwrap().clone()));
    let mut node = Running::start_with(config(dir.path(), &ledger.base()), source);
    let id = node.until(|i| i.registered.is_some()).await.registered.unwrap().node;
    shared.lock().unwrap().resources.mru = 7;
    let client = LedgerClient::new(&ledger.base(), None).unwrap();
    let changed = async {
        while client.node(id).await.unwrap().unwrap().resources.mru != 7 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, changed).await.expect("the ledger was not told");
    node.stop().await;
}

#[tokio::test]
async fn nodes_that_start_together_share_their_farm() {
    let ledger = Ledger::start().await;
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut nodes: Vec<_> = dirs
        .iter()
        .enumerate()
        .map(|(n, dir)| {
            let facts: FactsSource = Arc::new(move || Ok(facts_of(&format!("S{n}"))));
            Running::start_with(config(dir.path(), &ledger.base()), facts)
        })
        .collect();
    let mut farms = Vec::new();
    for node in &mut nodes {
        farms.push(node.until(|i| i.registered.is_some()).await.registered.unwrap().farm);
    }
    assert!(farms.windows(2).all(|pair| pair[0] == pair[1]), "{farms:?}");
    let client = LedgerClient::new(&ledger.base(), None).unwrap();
    assert_eq!((client.farms().await.unwrap().len(), client.nodes().await.unwrap().len()), (1, 4));
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn secrets_are_opened_on_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    // No ledger: secrets are opened all the same.
    let node = Running::start(config(dir.path(), "http://127.0.0.1:1"));
    let client = Client::unix("identity manager", dir.path().join("identity.sock")).unwrap();
    let asking = async {
        loop {
            match client.get::<NodeIdentity>("/v1/identity").await {
                Ok(identity) => return identity,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let identity = tokio::time::timeout(DEADLINE, asking).await.expect("nobody serves the socket");
    assert_eq!((identity.key, identity.registered), (node.key, None));

    let sealed = seal(&node.key, "1/demo/password", b"hunter2\0\xff").unwrap();
    let ask = async |context: &str, sealed: &str| {
        let request = UnsealRequest { context: context.into(), sealed: sealed.into() };
        client.post::<UnsealReply>("/v1/unseal", &request).await
    };
    let reply = ask("1/demo/password", &sealed).await.unwrap();
    assert_eq!(STANDARD.decode(&reply.secret).unwrap(), b"hunter2\0\xff");
    assert!(!format!("{reply:?}").contains(&reply.secret));
    assert_eq!(ask("2/demo/password", &sealed).await.unwrap_err().code, Code::Unauthorised);
    assert_eq!(ask("1/demo/password", "junk").await.unwrap_err().code, Code::BadRequest);
    let other = seal(&SigningKey::generate().unwrap().key_id(), "1/demo/password", b"x").unwrap();
    assert_eq!(ask("1/demo/password", &other).await.unwrap_err().code, Code::Unauthorised);

    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(dir.path().join("identity.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // A second manager does not take the place of one that lives.
    let second =
        Manager::open(config(dir.path(), "http://127.0.0.1:1"), Arc::new(|| Ok(facts())), None)
            .unwrap();
    let failure = second.run(CancellationToken::new()).await.unwrap_err();
    assert_eq!(failure.code, Code::PortTaken);
    assert_eq!(client.get::<NodeIdentity>("/v1/identity").await.unwrap().key, node.key);
    node.stop().await;
}

#[tokio::test]
async fn a_socket_that_a_dead_manager_left_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("identity.sock");
    // Dropping a std listener leaves its file behind, as a killed process does.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let node = Running::start(config(dir.path(), "http://127.0.0.1:1"));
    let client = Client::unix("identity manager", socket).unwrap();
    let asking = async {
        while client.get::<NodeIdentity>("/v1/identity").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, asking).await.expect("nobody serves the socket");
    node.stop().await;
}

#[tokio::test]
async fn what_an_account_uses_goes_to_the_ledger_signed_by_the_node() {
    let ledger = Ledger::start().await;
    let (owner, tenant) = (ledger.account(1).await, ledger.account(2).await);
    ledger.farm(&owner, "farm").await;
    let dir = tempfile::tempdir().unwrap();
    // The first of its ledgers is never there.
    let urls = format!("http://127.0.0.1:1,{}", ledger.base());
    let mut node = Running::start(config(dir.path(), &urls));
    let registered = node.until(|i| i.registered.is_some()).await.registered.unwrap();
    let change = async |method: Method, path: String, body: Value| {
        let answer = ledger.signed(method, &path, &owner.key, body.to_string()).await;
        assert!(answer.0 < 300, "{path}: {answer:?}");
    };
    let approval = format!("/v2/nodes/{}/approval", registered.node);
    change(Method::PUT, approval, json!({ "approved": true })).await;
    change(Method::PUT, "/v2/farms/1/access".into(), json!({ "access": "closed" })).await;
    let capacity = Capacity { cpu: Cpu::cores(2), memory: Bytes::gib(2), disk: Bytes::gib(2) };
    let grant = json!({ "account": tenant.id, "capacity": capacity });
    change(Method::POST, "/v2/farms/1/grants".into(), grant).await;

    let client = Client::unix("identity manager", dir.path().join("identity.sock")).unwrap();
    let usage = async |account: u64, number: u64, capacity: Capacity| {
        let usage = NodeUsage { account: AccountId(account), number, capacity, reserved: false };
        client.post::<UsageReply>("/v1/usage", &usage).await
    };
    let held = |taken, number| UsageReply { taken, number, capacity };
    assert_eq!(usage(tenant.id, 3, capacity).await, Ok(held(true, 3)));
    assert_eq!(usage(tenant.id, 3, capacity).await, Ok(held(true, 3)));
    assert_eq!(usage(tenant.id, 2, Capacity::default()).await, Ok(held(false, 3)));
    let more = usage(tenant.id, 4, capacity.saturating_add(capacity)).await.unwrap_err();
    assert_eq!(more.code, Code::NotGranted);
    assert!(more.message.contains("asked for 4 cpu"), "{more}");
    assert_eq!(usage(999, 1, capacity).await.unwrap_err().code, Code::NotFound);
    let listed = ledger.get("/v2/farms/1/usage").await.1;
    assert_eq!(listed, json!([{ "account": 2, "node": registered.node, "capacity": capacity }]));

    let away = |failure: Failure, why: &str| {
        assert_eq!(failure.code, Code::Unavailable);
        assert!(failure.message.contains("no ledger can be reached"), "{failure}");
        assert!(failure.detail.as_ref().unwrap().contains(why), "{failure:?}");
    };
    let address = ledger.address;
    ledger.stop().await;
    away(usage(tenant.id, 4, Capacity::default()).await.unwrap_err(), "cannot reach ledger at");
    // Something listens there and says nothing: a deployment is not held up for long.
    let silent = tokio::net::TcpListener::bind(address).await.unwrap();
    let asked = std::time::Instant::now();
    away(usage(tenant.id, 4, Capacity::default()).await.unwrap_err(), "cannot reach ledger at");
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    drop(silent);
    node.stop().await;
}
