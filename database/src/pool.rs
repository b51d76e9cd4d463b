//! Connections, and transactions that change something.

use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Postgres, Sqlite, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{DatabaseUrl, Error, Store, query};

/// How long one waits for another process's change, and for a free connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Readers do not block each other; more would only wait for the same processors.
const MAX_CONNECTIONS: u32 = 8;

/// Pages of SQLite's log (4 KiB each) before they are written where they belong. A page that changes
/// often is in it many times and is then written once; the tables of a large fleet have more pages than
/// the usual 1,000.
const CHECKPOINT_PAGES: &str = "8000";

/// The write lock of PostgreSQL: whoever changes something holds it until the commit, as SQLite has
/// it by itself. The number is ours, and counts within one database.
const BEGIN_POSTGRES: &str = "BEGIN; SELECT pg_advisory_xact_lock(7166487021545)";
const BEGIN_SQLITE: &str = "BEGIN IMMEDIATE";

/// An open database. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Database {
    pub(crate) pool: Pool,
    /// Whose turn it is to write, in the order of asking: SQLite's own lock knows no order.
    turn: Arc<Mutex<()>>,
}

#[derive(Debug, Clone)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A change under way. Dropped without [`Tx::commit`] it has never been.
pub struct Tx {
    pub(crate) open: OpenTx,
    /// Given back after the transaction has ended.
    _turn: Option<OwnedMutexGuard<()>>,
}

pub(crate) enum OpenTx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Database {
    /// Opens a database, making the file where there is none, and brings its tables up to date.
    /// Processes that do so at the same time wait for each other.
    pub async fn open(url: &DatabaseUrl, migrations: &Migrator) -> Result<Self, Error> {
        let migrated = |e: sqlx::migrate::MigrateError| sqlx::Error::Migrate(Box::new(e));
        let pool = match url {
            DatabaseUrl::Sqlite(path) => {
                if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
                    std::fs::create_dir_all(folder).map_err(sqlx::Error::Io)?;
                }
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .foreign_keys(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Full)
                    .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
                    .busy_timeout(PATIENCE);
                let pool = SqlitePoolOptions::new()
                    .max_connections(MAX_CONNECTIONS)
                    .acquire_timeout(PATIENCE)
                    .connect_with(options)
                    .await?;
                migrations.run(&pool).await.map_err(migrated)?;
                Pool::Sqlite(pool)
            }
            DatabaseUrl::Postgres(url) => {
                let options: PgConnectOptions = url.parse()?;
                // A server can be set to acknowledge what is not on disk; not for us.
                let options = options
                    .application_name("rhizome")
                    .options([("synchronous_commit", "on"), ("lock_timeout", "10s")]);
                let pool = PgPoolOptions::new()
                    .max_connections(MAX_CONNECTIONS)
                    .acquire_timeout(PATIENCE)
                    .connect_with(options)
                    .await?;
                migrations.run(&pool).await.map_err(migrated)?;
                Pool::Postgres(pool)
            }
        };
        let database = Self { pool, turn: Arc::default() };
        database.warn_of_what_is_not_durable().await?;
        Ok(database)
    }

    pub fn store(&self) -> Store {
        match self.pool {
            Pool::Sqlite(_) => Store::Sqlite,
            Pool::Postgres(_) => Store::Postgres,
        }
    }

    /// Begins a change: waits for its turn and for the write lock.
    pub async fn begin(&self) -> Result<Tx, Error> {
        let turn = self.turn.clone().lock_owned().await;
        self.begin_with(BEGIN_SQLITE, BEGIN_POSTGRES, Some(turn)).await
    }

    pub(crate) async fn begin_with(
        &self,
        sqlite: &'static str,
        postgres: &'static str,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Result<Tx, Error> {
        let open = match &self.pool {
            Pool::Sqlite(pool) => OpenTx::Sqlite(pool.begin_with(sqlite).await?),
            Pool::Postgres(pool) => OpenTx::Postgres(pool.begin_with(postgres).await?),
        };
        Ok(Tx { open, _turn: turn })
    }

    /// Whether it answers.
    pub async fn probe(&self) -> Result<(), Error> {
        query("SELECT CAST(1 AS BIGINT)").fetch_one::<(i64,)>(self).await.map(drop)
    }

    pub async fn close(&self) {
        match &self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }

    async fn warn_of_what_is_not_durable(&self) -> Result<(), Error> {
        if let Pool::Postgres(pool) = &self.pool {
            let (fsync,): (String,) = sqlx::query_as("SHOW fsync").fetch_one(pool).await?;
            if fsync != "on" {
                tracing::warn!("this PostgreSQL runs with fsync = {fsync}: a power cut loses data");
            }
        }
        Ok(())
    }
}

impl Tx {
    /// Ends it: all of it is on disk.
    pub async fn commit(self) -> Result<(), Error> {
        match self.open {
            OpenTx::Sqlite(tx) => tx.commit().await?,
            OpenTx::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }
}
