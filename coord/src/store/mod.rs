//! What coord knows, on disk. The only place that knows a table.
//!
//! ```text
//!   submissions ───┐
//!                  ├─ writer ─▶ SQLite, WAL ─▶ readers
//!   nodes' events ─┘      └───▶ news ────────▶ who follows a deployment
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

use std::path::Path;
use std::time::Duration;

use rhizome_model::{Code, DeploymentId, Event, Failure, NodeId};
use sqlx::query_builder::Separated;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, QueryBuilder, Sqlite};

pub use audit::AuditEntry;
pub use rows::TaskRow;
pub use task::Order;
pub use wake::{News, Waker};
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
    pub fn follow(&self, deployment: &DeploymentId) -> tokio::sync::broadcast::Receiver<News> {
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

/// Statements that are made together: each time SQLite's thread is woken costs more than most of
/// them do.
#[derive(Default)]
struct Statements(Option<QueryBuilder<Sqlite>>);

impl Statements {
    /// Begins the next one.
    fn next(&mut self, sql: &str) -> &mut QueryBuilder<Sqlite> {
        match &mut self.0 {
            Some(statements) => statements.push("; ").push(sql),
            none => none.insert(QueryBuilder::new(sql)),
        }
    }

    /// One with a row of values; `rest` comes after them.
    fn with(&mut self, sql: &str, values: impl FnOnce(&mut Values<'_>), rest: &str) {
        let statement = self.next(sql);
        statement.push(" (");
        values(&mut statement.separated(", "));
        statement.push(") ").push(rest);
    }

    /// Adds lines to the logs of deployments whose numbers are known.
    fn append(&mut self, lines: Vec<Line<'_>>) {
        let mut lines = lines.into_iter().peekable();
        while lines.peek().is_some() {
            let some = lines.by_ref().take(ROWS);
            let insert = self.next("INSERT INTO events (account, name, number, body) ");
            insert.push_values(some, |mut row, Line { deployment, number, body }| {
                let (account, name) = key_of(deployment);
                row.push_bind(account).push_bind(name.to_owned());
                row.push_bind(number).push_bind(body);
            });
        }
    }

    /// Removes the oldest lines of a log when it was long enough ago.
    fn trim(&mut self, id: &DeploymentId, before: i64, newest: i64) {
        if newest / TRIM_EVERY == before / TRIM_EVERY {
            return;
        }
        let (account, name) = key_of(id);
        let delete = self.next("DELETE FROM events WHERE account = ");
        delete.push_bind(account).push(" AND name = ").push_bind(name.to_owned());
        delete.push(" AND number <= ").push_bind(newest - MAX_EVENTS);
    }

    async fn execute(self, conn: &mut SqliteConnection) -> Result<()> {
        if let Some(mut statements) = self.0 {
            statements.build().execute(conn).await?;
        }
        Ok(())
    }
}

type Values<'s> = Separated<'s, Sqlite, &'static str>;

/// An event on its way into a deployment's log, as JSON.
struct Line<'a> {
    deployment: &'a DeploymentId,
    number: i64,
    body: String,
}

impl Line<'_> {
    /// For those who follow the deployment, when it is committed.
    fn news(&self) -> (DeploymentId, News) {
        let news = News::Event { number: count(self.number), body: self.body.as_str().into() };
        (self.deployment.clone(), news)
    }
}

/// Adds an event to the log of its deployment.
async fn append_one(conn: &mut SqliteConnection, event: Event) -> Result<()> {
    let id = &event.deployment;
    let (account, name) = key_of(id);
    let number: i64 = sqlx::query_scalar(
        "UPDATE deployments SET last_event = last_event + 1, updated_at = $3
         WHERE account = $1 AND name = $2 RETURNING last_event",
    )
    .bind(account)
    .bind(name)
    .bind(event.at)
    .fetch_one(&mut *conn)
    .await?;
    let mut statements = Statements::default();
    let body = serde_json::to_string(&event)?;
    statements.append(vec![Line { deployment: id, number, body }]);
    statements.trim(id, number - 1, number);
    statements.execute(conn).await
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
