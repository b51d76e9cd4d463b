//! The ledger's tables, and every statement that reads or changes them.
//!
//! Whatever changes something runs in a transaction that holds the write lock from its beginning
//! (`rhizome_database`): no check that it makes can be outdated when it writes. Ids come from a row,
//! so several ledgers on one PostgreSQL give no id twice.

pub mod access;
mod accounts;
pub mod audit;
mod availability;
mod conditions;
mod farms;
pub mod keys;
mod nodes;
pub mod revisions;
mod rows;
mod status;
mod uptime;
pub mod usage;
mod zos;

use rhizome_database::{Batches, Database, DatabaseUrl, Migrator, On, Tx, query};
use rhizome_model::{Code, Failure, KeyId};

pub use rhizome_database::Error as DbError;

pub use farms::FarmFilter;
pub use nodes::NodeFilter;
pub use rows::insert as insert_rows;
pub use status::{StatusFilter, put_report};
pub use uptime::{Delivered, Delivery};

use accounts::{AccountMade, NewAccountRow};
use nodes::NodeMade;
use rhizome_model::registrar::NodeRegistration;

pub static MIGRATIONS: Migrator = sqlx::migrate!();

/// Which rows of a list.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub limit: i64,
    pub offset: i64,
}

/// What comes in numbers is committed together.
#[derive(Clone)]
pub struct Db {
    database: Database,
    accounts: Batches<NewAccountRow, AccountMade>,
    nodes: Batches<NodeRegistration, NodeMade>,
    reports: Batches<Delivery, Delivered>,
}

impl Db {
    /// Opens the database, making it where there is none, and brings its tables up to date.
    pub async fn open(url: &DatabaseUrl, network: &str) -> Result<Self, Failure> {
        let fail = |e: &dyn std::fmt::Display| {
            let message = format!("cannot use the ledger's database {url}: {e}");
            Failure::new(Code::StateNotWritable, message)
        };
        let database = Database::open(url, &MIGRATIONS).await.map_err(|e| fail(&e))?;
        let db = Self {
            accounts: Batches::new(database.clone(), |tx, all| Box::pin(accounts::create(tx, all))),
            nodes: Batches::new(database.clone(), |tx, all| Box::pin(nodes::create(tx, all))),
            reports: Batches::new(database.clone(), |tx, all| Box::pin(uptime::take(tx, all))),
            database,
        };
        let made_for = db.first_setting("network", network).await.map_err(|e| fail(&e))?;
        if made_for != network {
            return Err(fail(&format!(
                "it is the ledger of the network '{made_for}', not of '{network}'"
            )));
        }
        Ok(db)
    }

    /// The value of a setting: whoever sets it first sets it for ever.
    async fn first_setting(&self, name: &str, value: &str) -> Result<String, DbError> {
        let mut tx = self.database.begin().await?;
        query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(value)
            .execute(&mut tx)
            .await?;
        let (set,) = query("SELECT value FROM settings WHERE name = $1")
            .bind(name)
            .fetch_one::<(String,)>(&mut tx)
            .await?;
        tx.commit().await?;
        Ok(set)
    }

    /// Whether it answers.
    pub async fn probe(&self) -> Result<(), DbError> {
        self.database.probe().await
    }

    pub async fn close(&self) {
        self.database.close().await;
    }

    /// That statements of this database are signed with this key; the first one counts for ever.
    pub async fn signs_with(&self, key: &KeyId) -> Result<(), Failure> {
        let fail = |e: &dyn std::fmt::Display| {
            Failure::new(Code::StateNotWritable, format!("the ledger's signing key: {e}"))
        };
        let known = self.first_setting("signing_key", &key.to_string()).await;
        let known = known.map_err(|e| fail(&e))?;
        if known == key.to_string() {
            return Ok(());
        }
        Err(fail(&format!(
            "this database's statements are signed with {known}, not with {key}; give every ledger \
             of it the same key file with --signing-key"
        )))
    }

    /// Begins a change.
    pub async fn begin(&self) -> Result<Tx, DbError> {
        self.database.begin().await
    }
}

/// Walks through the audit log of a database that may be in use.
pub async fn verify_audit(
    url: &DatabaseUrl,
    kept: Option<(u64, String)>,
) -> Result<audit::Verdict, DbError> {
    let database = Database::open(url, &MIGRATIONS).await?;
    let verdict = audit::verify(&database, kept).await;
    database.close().await;
    verdict
}

/// The last id of a kind that was given.
async fn last_id(on: impl Into<On<'_>>, kind: &str) -> Result<u64, DbError> {
    let last = query("SELECT last FROM sequences WHERE name = $1").bind(kind);
    let (last,) = last.fetch_one::<(i64,)>(on).await?;
    Ok(id_of(last))
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
        let failure = Db::open(&path, "main").await.err().unwrap();
        assert!(failure.message.contains("network 'dev'"), "{failure}");
        Db::open(&path, "dev").await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let failure = Db::open(&DatabaseUrl::sqlite(&path), "dev").await.err().unwrap();
        assert_eq!(failure.code, Code::StateNotWritable);
        assert!(failure.message.contains("ledger.sqlite"), "{failure}");
    }
}
