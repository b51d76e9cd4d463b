//! Every submission, accepted or refused; and the keys that the ledger named.

use rhizome_model::api::AccountView;
use rhizome_model::{AccountId, Failure, KeyId};
use sqlx::sqlite::SqliteConnection;

use super::{Durability, Result, Statements, Store, StoreError, Values, count, number};

/// Lines that are kept; older ones go.
const MAX_LINES: i64 = 100_000;

#[derive(Debug)]
pub struct AuditEntry<'a> {
    pub at: i64,
    pub digest: &'a str,
    /// As the envelope says them: hints, trusted only where the code is `accepted`.
    pub keyids: &'a [KeyId],
    pub account: Option<AccountId>,
    pub refusal: Option<&'a Failure>,
}

impl Store {
    pub async fn audit(&self, entry: &AuditEntry<'_>) -> Result<()> {
        let entry = Entry::from(entry);
        self.writer.write(Durability::Told, entry, |conn, entry| Box::pin(write(conn, entry))).await
    }

    /// Remembers a key that the ledger named.
    pub async fn remember_account(&self, account: &AccountView) -> Result<()> {
        let account = (number(account.id.0), account.key.to_string());
        self.writer.write(Durability::Told, account, |conn, a| Box::pin(remember(conn, a))).await
    }

    /// The account of a key, as the ledger said it last.
    pub async fn remembered_account(&self, key: &KeyId) -> Result<Option<AccountView>, Failure> {
        let id: Option<i64> = sqlx::query_scalar("SELECT id FROM accounts WHERE key = $1")
            .bind(key.to_string())
            .fetch_optional(&self.readers)
            .await
            .map_err(StoreError::Sql)?;
        Ok(id.map(|id| AccountView { id: AccountId(count(id)), key: *key }))
    }
}

async fn remember(conn: &mut SqliteConnection, (id, key): &(i64, String)) -> Result<()> {
    sqlx::query(
        "INSERT INTO accounts (id, key) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET key = $2",
    )
    .bind(id)
    .bind(key)
    .execute(conn)
    .await?;
    Ok(())
}

/// An entry as it is stored.
pub(super) struct Entry {
    at: i64,
    digest: String,
    keyids: String,
    account: Option<i64>,
    code: String,
    message: String,
}

impl From<&AuditEntry<'_>> for Entry {
    fn from(entry: &AuditEntry<'_>) -> Self {
        let keyids: Vec<_> = entry.keyids.iter().map(KeyId::to_string).collect();
        Self {
            at: entry.at,
            digest: entry.digest.to_owned(),
            keyids: keyids.join(" "),
            account: entry.account.map(|a| number(a.0)),
            code: entry.refusal.map_or("accepted".to_owned(), |f| f.code.to_string()),
            message: entry.refusal.map_or_else(String::new, |f| f.message.clone()),
        }
    }
}

impl Entry {
    pub fn write(&self, statements: &mut Statements) {
        let values = |row: &mut Values<'_>| {
            row.push_bind(self.at).push_bind(self.digest.clone()).push_bind(self.keyids.clone());
            row.push_bind(self.account).push_bind(self.code.clone());
            row.push_bind(self.message.clone());
        };
        let insert = "INSERT INTO audit (at, digest, keyids, account, code, message) VALUES";
        statements.with(insert, values, "");
    }
}

async fn write(conn: &mut SqliteConnection, entry: &Entry) -> Result<()> {
    let mut statements = Statements::default();
    entry.write(&mut statements);
    statements.execute(conn).await
}

pub(super) async fn trim(conn: &mut SqliteConnection) -> Result<()> {
    sqlx::query(
        "DELETE FROM audit WHERE at < (SELECT at FROM audit ORDER BY at DESC LIMIT 1 OFFSET $1)",
    )
    .bind(MAX_LINES)
    .execute(conn)
    .await?;
    Ok(())
}
