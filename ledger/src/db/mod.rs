//! The ledger's tables, and every statement that reads or changes them.
//!
//! Whatever changes something runs in a transaction that holds the write lock from its beginning
//! (`rhizome_database`): no check that it makes can be outdated when it writes. Ids come from a row,
//! so several ledgers on one PostgreSQL give no id twice.

mod accounts;
mod farms;
mod nodes;

use rhizome_database::{Database, DatabaseUrl, Migrator, Tx, query};
use rhizome_model::{Code, Failure};

pub use rhizome_database::Error as DbError;

pub use farms::FarmFilter;
pub use nodes::NodeFilter;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Which rows of a list.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub limit: i64,
    pub offset: i64,
}

#[derive(Debug, Clone)]
pub struct Db {
    database: Database,
}

impl Db {
    /// Opens the database, making it where there is none, and brings its tables up to date.
    pub async fn open(url: &DatabaseUrl, network: &str) -> Result<Self, Failure> {
        let fail = |e: &dyn std::fmt::Display| {
            let message = format!("cannot use the ledger's database {url}: {e}");
            Failure::new(Code::StateNotWritable, message)
        };
        let database = Database::open(url, &MIGRATIONS).await.map_err(|e| fail(&e))?;
        let db = Self { database };
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
        let mut tx = self.database.begin().await?;
        query("INSERT INTO settings (name, value) VALUES ('network', $1) ON CONFLICT (name) DO NOTHING")
            .bind(network)
            .execute(&mut tx)
            .await?;
        let (made_for,) = query("SELECT value FROM settings WHERE name = 'network'")
            .fetch_one::<(String,)>(&mut tx)
            .await?;
        tx.commit().await?;
        Ok(made_for)
    }

    /// Whether it answers.
    pub async fn probe(&self) -> Result<(), DbError> {
        self.database.probe().await
    }

    pub async fn close(&self) {
        self.database.close().await;
    }

    async fn begin(&self) -> Result<Tx, DbError> {
        self.database.begin().await
    }
}

/// The next id of a kind. A transaction that is not committed does not use it up.
async fn next_id(tx: &mut Tx, kind: &str) -> Result<i64, DbError> {
    let (id,) = query("UPDATE sequences SET last = last + 1 WHERE name = $1 RETURNING last")
        .bind(kind)
        .fetch_one::<(i64,)>(tx)
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
        let path = DatabaseUrl::sqlite(dir.path().join("sub/ledger.sqlite"));
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
        let failure = Db::open(&DatabaseUrl::sqlite(&path), "dev").await.unwrap_err();
        assert_eq!(failure.code, Code::StateNotWritable);
        assert!(failure.message.contains("ledger.sqlite"), "{failure}");
    }
}
