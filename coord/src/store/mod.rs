//! What coord knows, on disk. The only place that knows a table.
//!
//! ```text
//!   submissions ─▶ full ────┐                          ┌─▶ readers
//!                           ├─ one lock ─▶ SQLite, WAL ─┤
//!   nodes' events ─▶ quick ─┘                          └─▶ wake: who follows a deployment
//! ```
//!
//! - What a user was told is on disk (`synchronous=FULL`). What a node told us is kept by
//!   `synchronous=NORMAL`: it survives our death, and after a power cut the node tells it again,
//!   because the cursor lies in the same transaction.
//! - Writers stand in line here and not in SQLite, whose own waiting is by sleeping.
//! - Events of a deployment are numbered without gaps, in the order of their commits.

mod audit;
mod mirror;
mod read;
mod rows;
mod submit;
mod task;
mod wake;

use std::path::Path;
use std::time::Duration;

use rhizome_model::{Code, DeploymentId, Event, Failure, NodeId};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;

pub use audit::AuditEntry;
pub use rows::TaskRow;
pub use task::Order;
pub use wake::Waker;

/// Events kept of one deployment; older ones go.
pub const MAX_EVENTS: i64 = 10_000;
/// The oldest events are removed every so many, not one by one.
const TRIM_EVERY: i64 = 256;
const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("coord's database failed")]
    Sql(#[from] sqlx::Error),
    #[error("coord's database cannot be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("coord's database holds what cannot be read")]
    Json(#[from] serde_json::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |s| s.to_string());
        Self::new(Code::Internal, format!("{error}: {cause}"))
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// One deployment on one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskKey {
    pub deployment: DeploymentId,
    pub node: NodeId,
}

pub struct Store {
    writers: Mutex<Writers>,
    readers: SqlitePool,
    waker: Waker,
}

struct Writers {
    full: SqliteConnection,
    quick: SqliteConnection,
}

impl Store {
    /// Opens the database, or makes it.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = |synchronous| {
            SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(synchronous)
                .busy_timeout(BUSY_TIMEOUT)
        };
        let mut full = options(SqliteSynchronous::Full).connect().await?;
        sqlx::migrate!("./migrations").run_direct(None, &mut full, false).await?;
        let quick = options(SqliteSynchronous::Normal).connect().await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options(SqliteSynchronous::Normal).read_only(true))
            .await?;
        let writers = Mutex::new(Writers { full, quick });
        Ok(Self { writers, readers, waker: Waker::default() })
    }

    /// Told whenever the deployment has new events.
    pub fn follow(&self, deployment: &DeploymentId) -> tokio::sync::watch::Receiver<()> {
        self.waker.follow(deployment)
    }

    /// Forgets what no longer matters: nonces of expired envelopes, old lines of the audit log.
    pub async fn tidy(&self, now_ms: i64) -> Result<()> {
        let mut writers = self.writers.lock().await;
        sqlx::query("DELETE FROM nonces WHERE expires_at < $1")
            .bind(now_ms)
            .execute(&mut writers.quick)
            .await?;
        audit::trim(&mut writers.quick).await
    }
}

/// Adds events to the log of their deployment, which is one.
async fn append(conn: &mut SqliteConnection, id: &DeploymentId, events: &[Event]) -> Result<()> {
    let Some(last) = events.last() else { return Ok(()) };
    let (account, name) = key_of(id);
    let added = i64::try_from(events.len()).unwrap_or(i64::MAX);
    let newest: i64 = sqlx::query_scalar(
        "UPDATE deployments SET last_event = last_event + $3, updated_at = $4
         WHERE account = $1 AND name = $2 RETURNING last_event",
    )
    .bind(account)
    .bind(name)
    .bind(added)
    .bind(last.at)
    .fetch_one(&mut *conn)
    .await?;
    let before = newest - added;
    for (number, event) in (before + 1..).zip(events) {
        sqlx::query("INSERT INTO events (account, name, number, body) VALUES ($1, $2, $3, $4)")
            .bind(account)
            .bind(name)
            .bind(number)
            .bind(serde_json::to_string(event)?)
            .execute(&mut *conn)
            .await?;
    }
    if newest / TRIM_EVERY != before / TRIM_EVERY {
        sqlx::query("DELETE FROM events WHERE account = $1 AND name = $2 AND number <= $3")
            .bind(account)
            .bind(name)
            .bind(newest - MAX_EVENTS)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

async fn begin(conn: &mut SqliteConnection) -> Result<sqlx::SqliteTransaction<'_>> {
    // At once for writing: a transaction that reads first and then wants to write can fail.
    Ok(conn.begin_with("BEGIN IMMEDIATE").await?)
}

fn key_of(id: &DeploymentId) -> (i64, &str) {
    (number(id.account.0), id.name.as_str())
}

/// Ids of ours fit; a number that does not is nobody's.
fn number(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(-1)
}

fn count(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}
