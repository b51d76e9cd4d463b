//! A node's identity on disks that go and come, against a real ledger.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rhizome_identity::LedgerClient;
use rhizome_identity::manager::{
    Config, Facts, FactsSource, FarmChoice, IdentityError, Manager, Overrides,
};
use rhizome_model::api::NodeIdentity;
use rhizome_model::{Code, Failure};
use rhizome_tests::{Disk, Mounted, binary, eventually, tool};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(30);

/// A ledger in a process of its own. Dropping it ends it.
struct Ledger {
    process: Child,
    url: String,
}

impl Ledger {
    fn start(dir: &Path) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = std::process::Command::new(binary())
            .args(["ledger", "--network", "dev", "--listen", &free.to_string(), "--state"])
            .arg(dir.join("ledger"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the ledger listens", LIMIT, || std::net::TcpStream::connect(free).ok());
        Self { process, url: format!("http://{free}") }
    }

    async fn nodes(&self) -> usize {
        LedgerClient::new(&self.url, None).unwrap().nodes().await.unwrap().len()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A machine whose state folder is in memory: what lasts is in its pools.
struct Machine<'a> {
    dir: PathBuf,
    ledger: &'a Ledger,
    pools: Vec<PathBuf>,
    new_identity: bool,
}

impl Machine<'_> {
    fn open(&self) -> Result<Manager, IdentityError> {
        let state = self.dir.join("state");
        let _ = std::fs::remove_dir_all(&state);
        let config = Config {
            socket: state.join("identity.sock"),
            state,
            state_pools: self.pools.clone(),
            shared_socket: None,
            grants: vec![],
            traces: vec![],
            // The first of them does not answer.
            ledger: format!("http://127.0.0.1:1,{}", self.ledger.url),
            farm: FarmChoice::Name("farm".into()),
            supervisor_url: None,
            location: Default::default(),
            uptime_interval: Duration::from_millis(100),
            new_identity: self.new_identity,
        };
        std::fs::create_dir_all(&config.state).unwrap();
        let machine = Overrides { serial_number: Some("M-1".into()), ..Overrides::default() };
        let facts: FactsSource = Arc::new(move || Facts::gather(&machine));
        Manager::open(config, facts, None)
    }

    /// Runs until something holds of the node's identity, and stops.
    async fn until(
        &self,
        level: impl FnMut(&NodeIdentity) -> bool,
    ) -> Result<NodeIdentity, Failure> {
        let manager = self.open()?;
        let (stop, mut identity) = (CancellationToken::new(), manager.identity());
        let running = tokio::spawn(manager.run(stop.clone()));
        let reached = tokio::time::timeout(LIMIT, identity.wait_for(level)).await;
        let reached = reached.expect("it did not come to that").map(|i| i.clone());
        stop.cancel();
        running.await.unwrap()?;
        Ok(reached.expect("it ended well, so it was reached"))
    }

    async fn registered(&self) -> Result<NodeIdentity, Failure> {
        self.until(|i| i.registered.is_some() && i.problem.is_none() && !i.copies.is_empty()).await
    }
}

fn copy_in(pool: &Path) -> PathBuf {
    pool.join("rhizome-identity/node.identity")
}

#[tokio::test]
async fn a_pool_that_lost_one_of_its_two_disks_keeps_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start(dir.path());
    let (first, second) = (Disk::new(dir.path(), "a"), Disk::new(dir.path(), "b"));
    let mirrored = ["-q", "-m", "raid1", "-d", "raid1", first.device(), second.device()];
    tool("mkfs.btrfs", &mirrored);
    tool("btrfs", &["device", "scan", first.device(), second.device()]);
    let pool = dir.path().join("pool");
    let machine = Machine {
        dir: dir.path().to_owned(),
        ledger: &ledger,
        pools: vec![pool.clone()],
        new_identity: false,
    };
    let before = {
        let _mounted = Mounted::new(&first, pool.clone(), "noatime");
        machine.registered().await.unwrap()
    };
    tool("btrfs", &["device", "scan", "--forget", second.device()]);
    drop(second);
    let _mounted = Mounted::new(&first, pool, "noatime,degraded");
    let after = machine.registered().await.unwrap();
    assert_eq!((after.key, after.registered), (before.key, before.registered));
    assert_eq!(ledger.nodes().await, 1);
}

#[tokio::test]
async fn of_two_pools_one_is_enough_and_the_other_is_healed() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start(dir.path());
    let pools = [dir.path().join("one"), dir.path().join("two")];
    let disk = |name: &str| {
        let disk = Disk::new(dir.path(), name);
        tool("mkfs.btrfs", &["-q", disk.device()]);
        disk
    };
    let machine = Machine {
        dir: dir.path().to_owned(),
        ledger: &ledger,
        pools: pools.to_vec(),
        new_identity: false,
    };
    let (first, second) = (disk("a"), disk("b"));
    let one = Mounted::new(&first, pools[0].clone(), "noatime");
    let two = Mounted::new(&second, pools[1].clone(), "noatime");
    let before = machine.registered().await.unwrap();
    assert!(before.copies.iter().all(|copy| copy.problem.is_none()), "{before:?}");
    let good = std::fs::read(copy_in(&pools[1])).unwrap();

    // The second disk dies.
    drop(two);
    drop(second);
    let alone = machine.registered().await.unwrap();
    assert_eq!((alone.key, alone.registered), (before.key, before.registered));
    let missing = alone.copies.iter().find(|c| c.path.contains("/two/")).unwrap();
    assert_eq!(missing.problem.as_deref(), Some("nothing is mounted there"));

    // A new one takes its place; then the copy on the first one rots.
    let third = disk("c");
    let _two = Mounted::new(&third, pools[1].clone(), "noatime");
    let healed = machine.registered().await.unwrap();
    assert!(healed.copies.iter().all(|copy| copy.problem.is_none()), "{healed:?}");
    assert_eq!(std::fs::read(copy_in(&pools[1])).unwrap(), good);
    std::fs::write(copy_in(&pools[0]), &good[..good.len() / 2]).unwrap();
    let again = machine.registered().await.unwrap();
    assert_eq!(again.key, before.key);
    assert_eq!(std::fs::read(copy_in(&pools[0])).unwrap(), good);

    // The disk of another node is not taken for ours, and is not written to.
    drop(one);
    let foreign_dir = tempfile::tempdir().unwrap();
    let foreign =
        Machine { dir: foreign_dir.path().to_owned(), pools: vec![pools[0].clone()], ..machine };
    let fourth = disk("d");
    let _one = Mounted::new(&fourth, pools[0].clone(), "noatime");
    let other = Machine { new_identity: true, ..foreign }.registered().await.unwrap();
    assert_ne!(other.key, before.key);
    let bytes = std::fs::read(copy_in(&pools[0])).unwrap();
    let machine = Machine {
        dir: dir.path().to_owned(),
        ledger: &ledger,
        pools: pools.to_vec(),
        new_identity: false,
    };
    let refused = machine.registered().await.unwrap_err();
    assert_eq!(refused.code, Code::IdentityConflict);
    assert_eq!(std::fs::read(copy_in(&pools[0])).unwrap(), bytes);
}

#[tokio::test]
async fn a_node_that_lost_all_is_not_made_anew_over_a_known_machine_unless_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start(dir.path());
    let pool = dir.path().join("pool");
    let mut machine = Machine {
        dir: dir.path().to_owned(),
        ledger: &ledger,
        pools: vec![pool.clone()],
        new_identity: false,
    };
    let before = {
        let disk = Disk::new(dir.path(), "a");
        tool("mkfs.btrfs", &["-q", disk.device()]);
        let _mounted = Mounted::new(&disk, pool.clone(), "noatime");
        machine.registered().await.unwrap()
    };
    // Its pool is out of sight: that may be all that is wrong.
    let refused = machine.registered().await.unwrap_err();
    assert_eq!(refused.code, Code::IdentityLost);
    assert!(refused.message.contains("mount it"), "{refused}");

    let disk = Disk::new(dir.path(), "b");
    tool("mkfs.btrfs", &["-q", disk.device()]);
    let _mounted = Mounted::new(&disk, pool.clone(), "noatime");
    let refused = machine.registered().await.unwrap_err();
    assert_eq!(refused.code, Code::KnownMachine);
    let node = before.registered.unwrap().node;
    for says in
        ["serial number M-1", &format!("as node {node}"), "identity import", "--new-identity"]
    {
        assert!(refused.message.contains(says), "{refused}");
    }
    assert!(!copy_in(&pool).exists(), "an identity was made");
    assert_eq!(ledger.nodes().await, 1);

    // As the farmer sees it.
    let output = std::process::Command::new(binary())
        .args([
            "--json",
            "node",
            "--tpm",
            "off",
            "--serial-number",
            "M-1",
            "--listen",
            "127.0.0.1:0",
            "--mycelium",
            "off",
        ])
        .args(["--network", "dev", "--ledger", &ledger.url, "--state"])
        .arg(dir.path().join("node"))
        .arg("--state-pool")
        .arg(&pool)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["code"], "known_machine");

    machine.new_identity = true;
    let after = machine.registered().await.unwrap();
    assert_ne!((after.key, after.registered), (before.key, before.registered));
    assert_eq!(ledger.nodes().await, 2);
    // It stays so, also where the option stays in a unit file.
    assert_eq!(machine.registered().await.unwrap().key, after.key);
}
