//! The world around coord.

pub mod ledger;
pub mod place;
pub mod supervisor;
pub mod user;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rhizome_coord::CoordConfig;
use rhizome_identity::SigningKey;
use rhizome_model::NodeId;
use rhizome_service::Shutdown;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

pub use ledger::FakeLedger;
pub use place::Place;
pub use supervisor::{FakeSupervisor, Mood};
pub use user::User;

/// Nothing here takes longer, also on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(20);

pub fn coord_key() -> SigningKey {
    SigningKey::from_seed([200; 32])
}

/// One coord, one ledger, some nodes. All can be ended and started again.
pub struct World {
    pub ledger: FakeLedger,
    pub nodes: Vec<FakeSupervisor>,
    pub coord: Place,
    folder: tempfile::TempDir,
}

impl World {
    /// Everything is up; account 1 is the user with the seed 1, and so on up to 3.
    pub async fn new(nodes: u64) -> Self {
        let world = Self::without_coord(nodes).await;
        world.start_coord().await;
        world
    }

    pub async fn without_coord(nodes: u64) -> Self {
        let ledger = FakeLedger::new();
        for account in 1..=3 {
            ledger.add_account(account, &User::new(account).key);
        }
        let nodes: Vec<_> = (1..=nodes)
            .map(|id| {
                let node = FakeSupervisor::new(NodeId(id));
                ledger.add_node(NodeId(id), &node.key(), Some(node.place.url()));
                node.place.open();
                node
            })
            .collect();
        ledger.place.open();
        let folder = tempfile::tempdir().unwrap();
        let (database, url) = (folder.path().join("coord.db"), ledger.place.url());
        let statements = folder.path().join("statements");
        let coord = Place::new(move |listener| {
            let config = CoordConfig {
                database: database.clone(),
                ledger: url.clone(),
                ledger_key: None,
                statements: statements.clone(),
                network: "dev".into(),
                key: coord_key(),
            };
            Box::pin(async move {
                rhizome_coord::run(config, listener, Shutdown::new()).await.unwrap();
            })
        });
        Self { ledger, nodes, coord, folder }
    }

    pub async fn start_coord(&self) {
        self.coord.open();
        let user = self.user(1);
        until("coord serves", || async {
            user.plain.get::<serde_json::Value>("/healthz").await.ok()
        })
        .await;
    }

    /// As by `kill -9`: its state in memory is gone, its connections are cut.
    pub async fn kill_coord(&self) {
        self.coord.close();
    }

    /// What the ledger said is gone; the address is the same.
    pub async fn with_coord_that_knows_nothing(self) -> Self {
        self.kill_coord().await;
        std::fs::remove_dir_all(self.folder.path().join("statements")).unwrap();
        self.start_coord().await;
        self
    }

    pub fn user(&self, account: u64) -> User {
        User::new(account).of(&self.coord.url())
    }

    pub fn database(&self) -> PathBuf {
        self.folder.path().join("coord.db")
    }

    /// Everything that coord keeps, as text; without the audit log and the known keys.
    pub async fn kept(&self) -> String {
        let pool = self.pool().await;
        let mut text = String::new();
        for (table, select) in [
            (
                "deployments",
                "SELECT account||' '||name||' '||version||' '||last_event||' '||submitted_at||' '||updated_at AS line FROM deployments ORDER BY 1",
            ),
            ("envelopes", "SELECT digest||' '||hex(bytes) AS line FROM envelopes ORDER BY 1"),
            ("nonces", "SELECT account||' '||nonce AS line FROM nonces ORDER BY 1"),
            (
                "tasks",
                "SELECT account||name||node||' '||version||phase||envelope||delivered AS line FROM tasks ORDER BY 1",
            ),
            ("events", "SELECT account||name||number||body AS line FROM events ORDER BY 1"),
        ] {
            text.push_str(table);
            for row in sqlx::query(select).fetch_all(&pool).await.unwrap() {
                text.push('\n');
                text.push_str(row.get("line"));
            }
        }
        text
    }

    /// The codes in the audit log.
    pub async fn audited(&self) -> Vec<String> {
        let rows = sqlx::query("SELECT code FROM audit ORDER BY at, rowid");
        let rows = rows.fetch_all(&self.pool().await).await.unwrap();
        rows.iter().map(|row| row.get("code")).collect()
    }

    async fn pool(&self) -> SqlitePool {
        let options = SqliteConnectOptions::new().filename(self.database()).read_only(true);
        SqlitePool::connect_with(options).await.unwrap()
    }
}

/// Waits for something to become true.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl FnMut() -> F) -> T {
    until_within(SOON, what, look).await
}

/// The same for what is much work: on a machine that is busy with other things, it takes its time.
pub async fn until_within<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
