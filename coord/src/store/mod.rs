//! What coord knows, on disk. The only place that knows a table.
//!
//! ```text
//!   submissions ───┐                         ┌─▶ readers
//!                  ├─ writer ─▶ SQLite, WAL ─┤
//!   nodes' events ─┘                         └─▶ wake: who follows a deployment
//! ```
//!
//! - What a user was told is on disk (`synchronous=FULL`). What a node told us is kept by
//!   `synchronous=NORMAL`: it survives our death, and after a power cut the node tells it again,
//!   because the cursor lies in the same transaction.
//! - There is one writer: what piles up during a commit goes into the next (`writer`).
//! - Events of a deployment are numbered without gaps, in the order of their commits.

mod audit;
mod mirror;
mod read;
mod rows;
mod submit;
mod task;
mod wake;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use rhizome_model::{Code, DeploymentId, Event, Failure, NodeId};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, QueryBuilder};

pub use audit::AuditEntry;
pub use rows::TaskRow;
pub use task::Order;
pub use wake::Waker;
use writer::{Durability, Writer};

/// Events kept of one deployment; older ones go.
pub const MAX_EVENTS: i64 = 10_000;
/// The oldest events are removed every so many, not one by one.
const TRIM_EVERY: i64 = 256;
/// A page that is written often goes into the database once per so many.
const CHECKPOINT_PAGES: &str = "8000";
/// Rows of one statement.
const ROWS: usize = 256;
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
    writer: Writer,
    readers: SqlitePool,
    waker: Waker,
}

impl Store {
    /// Opens the database, or makes it.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .busy_timeout(BUSY_TIMEOUT);
        let mut connection = options.connect().await?;
        sqlx::migrate!("./migrations").run_direct(None, &mut connection, false).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            // They are files of our own: nothing ends them behind our back.
            .test_before_acquire(false)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self { writer: Writer::new(connection), readers, waker: Waker::default() })
    }

    /// Told whenever the deployment has new events.
    pub fn follow(&self, deployment: &DeploymentId) -> tokio::sync::watch::Receiver<()> {
        self.waker.follow(deployment)
    }

    /// Forgets what no longer matters: nonces of expired envelopes, old lines of the audit log.
    pub async fn tidy(&self, now_ms: i64) -> Result<()> {
        self.writer.write(Durability::Told, now_ms, |conn, now| Box::pin(tidy(conn, *now))).await
    }
}

async fn tidy(conn: &mut SqliteConnection, now_ms: i64) -> Result<()> {
    sqlx::query("DELETE FROM nonces WHERE expires_at < $1")
        .bind(now_ms)
        .execute(&mut *conn)
        .await?;
    audit::trim(conn).await
}

/// Adds events to the logs of their deployments, each of which is one.
async fn append(
    conn: &mut SqliteConnection,
    news: &BTreeMap<DeploymentId, Vec<Event>>,
) -> Result<()> {
    let news: Vec<_> = news.iter().filter(|(_, events)| !events.is_empty()).collect();
    for some in news.chunks(ROWS) {
        let newest = number_events(conn, some).await?;
        let mut lines = Vec::new();
        for (id, events) in some {
            let Some(newest) = newest.get(*id) else { continue };
            for (back, event) in events.iter().rev().enumerate() {
                let back = i64::try_from(back).unwrap_or(i64::MAX);
                lines.push((*id, newest - back, serde_json::to_string(event)?));
            }
        }
        write_lines(conn, &lines).await?;
        for (id, events) in some {
            let Some(newest) = newest.get(*id) else { continue };
            trim(conn, id, *newest, events.len()).await?;
        }
    }
    Ok(())
}

async fn append_one(conn: &mut SqliteConnection, event: Event) -> Result<()> {
    append(conn, &BTreeMap::from([(event.deployment.clone(), vec![event])])).await
}

/// The number of each deployment's newest event when so many are added.
async fn number_events(
    conn: &mut SqliteConnection,
    news: &[(&DeploymentId, &Vec<Event>)],
) -> Result<HashMap<DeploymentId, i64>> {
    let mut query = QueryBuilder::new("WITH v (account, name, added, at) AS (");
    query.push_values(news, |mut row, (id, events)| {
        let (account, name) = key_of(id);
        let added = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let at = events.last().map_or(0, |event| event.at);
        row.push_bind(account).push_bind(name.to_owned()).push_bind(added).push_bind(at);
    });
    query.push(
        ") UPDATE deployments SET last_event = last_event + v.added, updated_at = v.at FROM v
           WHERE deployments.account = v.account AND deployments.name = v.name
           RETURNING deployments.account, deployments.name, last_event",
    );
    let rows: Vec<(i64, String, i64)> = query.build_query_as().fetch_all(conn).await?;
    let rows = rows.into_iter();
    rows.map(|(account, name, newest)| Ok((rows::deployment_id(account, &name)?, newest))).collect()
}

async fn write_lines(
    conn: &mut SqliteConnection,
    lines: &[(&DeploymentId, i64, String)],
) -> Result<()> {
    for some in lines.chunks(ROWS) {
        let mut query = QueryBuilder::new("INSERT INTO events (account, name, number, body) ");
        query.push_values(some, |mut row, (id, number, body)| {
            let (account, name) = key_of(id);
            row.push_bind(account).push_bind(name.to_owned());
            row.push_bind(*number).push_bind(body.clone());
        });
        query.build().execute(&mut *conn).await?;
    }
    Ok(())
}

async fn trim(
    conn: &mut SqliteConnection,
    id: &DeploymentId,
    newest: i64,
    added: usize,
) -> Result<()> {
    let before = newest - i64::try_from(added).unwrap_or(i64::MAX);
    if newest / TRIM_EVERY == before / TRIM_EVERY {
        return Ok(());
    }
    let (account, name) = key_of(id);
    sqlx::query("DELETE FROM events WHERE account = $1 AND name = $2 AND number <= $3")
        .bind(account)
        .bind(name)
        .bind(newest - MAX_EVENTS)
        .execute(conn)
        .await?;
    Ok(())
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
