//! Every submission, accepted or refused; and the keys that the ledger named.

use rhizome_model::api::AccountView;
use rhizome_model::{AccountId, Failure, KeyId};
use sqlx::sqlite::SqliteConnection;

use super::{Durability, Result, Store, StoreError, count, number};

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
        let line = Line::from(entry);
        self.writer.write(Durability::Told, line, |conn, line| Box::pin(line.write(conn))).await
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
pub(super) struct Line {
    at: i64,
    digest: String,
    keyids: String,
    account: Option<i64>,
    code: String,
    message: String,
}

impl From<&AuditEntry<'_>> for Line {
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

impl Line {
    pub async fn write(&self, conn: &mut SqliteConnection) -> Result<()> {
        sqlx::query(
            "INSERT INTO audit (at, digest, keyids, account, code, message)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(self.at)
        .bind(&self.digest)
        .bind(&self.keyids)
        .bind(self.account)
        .bind(&self.code)
        .bind(&self.message)
        .execute(conn)
        .await?;
        Ok(())
    }
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
