//! Every submission, accepted or refused; and the keys that the ledger named.

use rhizome_model::api::AccountView;
use rhizome_model::{AccountId, Failure, KeyId};
use sqlx::sqlite::SqliteConnection;

use super::{Result, Store, StoreError, count, number};

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
        write(&mut self.writers.lock().await.quick, entry).await
    }

    /// Remembers a key that the ledger named.
    pub async fn remember_account(&self, account: &AccountView) -> Result<()> {
        let mut writers = self.writers.lock().await;
        sqlx::query(
            "INSERT INTO accounts (id, key) VALUES ($1, $2)
             ON CONFLICT (id) DO UPDATE SET key = $2",
        )
        .bind(number(account.id.0))
        .bind(account.key.to_string())
        .execute(&mut writers.quick)
        .await?;
        Ok(())
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

pub(super) async fn write(conn: &mut SqliteConnection, entry: &AuditEntry<'_>) -> Result<()> {
    let code = entry.refusal.map_or("accepted".to_owned(), |f| f.code.to_string());
    let keyids: Vec<_> = entry.keyids.iter().map(KeyId::to_string).collect();
    sqlx::query(
        "INSERT INTO audit (at, digest, keyids, account, code, message)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(entry.at)
    .bind(entry.digest)
    .bind(keyids.join(" "))
    .bind(entry.account.map(|a| number(a.0)))
    .bind(code)
    .bind(entry.refusal.map_or("", |f| f.message.as_str()))
    .execute(conn)
    .await?;
    Ok(())
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
