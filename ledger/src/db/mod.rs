//! The database: SQLite, and SQL that PostgreSQL takes as well.
//!
//! Whatever changes something runs in a transaction that takes the write lock at its beginning:
//! two that read first and write later would otherwise make each other fail. A change is on disk
//! before it is answered (WAL with `synchronous = FULL`), so a kill -9 or a power cut loses nothing
//! that was acknowledged.

mod accounts;
mod farms;
mod nodes;

use std::path::Path;
use std::time::Duration;

use rhizome_model::{Code, Failure};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};

pub use farms::FarmFilter;
pub use nodes::NodeFilter;

/// How long a writer waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Readers do not block each other; more would only wait for the same two cores.
const MAX_CONNECTIONS: u32 = 4;

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// A row with this key or name is there already.
    #[error("it exists already")]
    Duplicate,
    /// A row that it refers to is not there.
    #[error("what it refers to does not exist")]
    Dangling,
    #[error(transparent)]
    Sql(sqlx::Error),
    #[error("the database holds what we never wrote")]
    Corrupt(#[source] serde_json::Error),
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(e) if e.is_unique_violation() => Self::Duplicate,
            sqlx::Error::Database(e) if e.is_foreign_key_violation() => Self::Dangling,
            _ => Self::Sql(error),
        }
    }
}

type Tx = Transaction<'static, Sqlite>;

/// Which rows of a list.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub limit: i64,
    pub offset: i64,
}

#[derive(Debug, Clone)]
pub struct Db {
    pool: SqlitePool,
}

impl Db {
    /// Opens the database, making it where there is none, and brings its tables up to date.
    pub async fn open(path: &Path, network: &str) -> Result<Self, Failure> {
        let fail = |e: &dyn std::fmt::Display| {
            Failure::new(
                Code::StateNotWritable,
                format!("cannot use the ledger's database {}: {e}", path.display()),
            )
        };
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| fail(&e))?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .connect_with(options)
            .await
            .map_err(|e| fail(&e))?;
        sqlx::migrate!().run(&pool).await.map_err(|e| fail(&e))?;
        let db = Self { pool };
        let made_for = db.made_for(network).await.map_err(|e| fail(&e))?;
        if made_for != network {
            return Err(fail(&format!(
                "it is the ledger of the network '{made_for}', not of '{network}'"
            )));
        }
        Ok(db)
    }

    /// The network of this database; the one that opens it first.
    async fn made_for(&self, network: &str) -> Result<String, DbError> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "INSERT INTO settings (name, value) VALUES ('network', $1) ON CONFLICT (name) DO NOTHING",
        )
        .bind(network)
        .execute(&mut *tx)
        .await?;
        let made_for = sqlx::query_scalar("SELECT value FROM settings WHERE name = 'network'")
            .fetch_one(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(made_for)
    }

    /// Whether it answers.
    pub async fn probe(&self) -> Result<(), DbError> {
        sqlx::query_scalar::<_, i64>("SELECT last FROM sequences WHERE name = 'node'")
            .fetch_one(&self.pool)
            .await?;
        Ok(())
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn begin(&self) -> Result<Tx, DbError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// The next id of a kind. A transaction that is not committed does not use it up.
async fn next_id(tx: &mut Tx, kind: &str) -> Result<i64, DbError> {
    let id =
        sqlx::query_scalar("UPDATE sequences SET last = last + 1 WHERE name = $1 RETURNING last")
            .bind(kind)
            .fetch_one(&mut **tx)
            .await?;
    Ok(id)
}

/// Ids are given by [`next_id`], so they are never negative.
fn id_of(column: i64) -> u64 {
    column.unsigned_abs()
}

/// An id from outside as a column. What cannot be a column is no row's id.
fn column(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_belongs_to_one_network() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/ledger.sqlite");
        Db::open(&path, "dev").await.unwrap().close().await;
        let failure = Db::open(&path, "main").await.unwrap_err();
        assert!(failure.message.contains("network 'dev'"), "{failure}");
        Db::open(&path, "dev").await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let failure = Db::open(&path, "dev").await.unwrap_err();
        assert_eq!(failure.code, Code::StateNotWritable);
        assert!(failure.message.contains("ledger.sqlite"), "{failure}");
    }

    #[tokio::test]
    async fn what_is_answered_survives_a_power_cut() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("ledger.sqlite"), "dev").await.unwrap();
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut connection = db.pool.acquire().await.unwrap();
            let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
                .fetch_one(&mut *connection)
                .await
                .unwrap();
            let sync: i64 =
                sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *connection).await.unwrap();
            // 2 is FULL: every commit is synced.
            assert_eq!((mode.as_str(), sync), ("wal", 2));
            // Held, so that the next one is another connection of the pool.
            held.push(connection);
        }
    }
}
