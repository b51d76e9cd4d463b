//! Accounts.

use rhizome_database::{FromRow, query};
use rhizome_model::registrar::Account;
use rhizome_model::{AccountId, KeyId};

use super::{Db, DbError, column, id_of, next_id};
use crate::time;

#[derive(FromRow)]
struct AccountRow {
    id: i64,
    public_key: Vec<u8>,
    relays: Option<String>,
    rmb_enc_key: String,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<AccountRow> for Account {
    type Error = DbError;
    fn try_from(row: AccountRow) -> Result<Self, DbError> {
        Ok(Self {
            twin_id: AccountId(id_of(row.id)),
            relays: row
                .relays
                .as_deref()
                .map(serde_json::from_str)
                .transpose()
                .map_err(DbError::corrupt)?,
            rmb_enc_key: row.rmb_enc_key,
            created_at: time::rfc3339(row.created_at),
            updated_at: time::rfc3339(row.updated_at),
            public_key: key_of(row.public_key)?,
        })
    }
}

/// A key from its column.
pub(super) fn key_of(bytes: Vec<u8>) -> Result<KeyId, DbError> {
    let bytes: [u8; 32] = bytes
        .try_into()
        .map_err(|b: Vec<u8>| DbError::corrupt(format_args!("a key of {} bytes", b.len())))?;
    Ok(KeyId(bytes))
}

impl Db {
    /// [`DbError::Duplicate`] when the key has an account.
    pub async fn create_account(
        &self,
        key: KeyId,
        relays: Option<&[String]>,
        rmb_enc_key: &str,
    ) -> Result<Account, DbError> {
        let relays = relays.map(serde_json::to_string).transpose().map_err(DbError::corrupt)?;
        let mut tx = self.begin().await?;
        let id = next_id(&mut tx, "account").await?;
        let row: AccountRow = query(
            "INSERT INTO accounts (id, public_key, relays, rmb_enc_key, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $5)
             RETURNING id, public_key, relays, rmb_enc_key, created_at, updated_at",
        )
        .bind(id)
        .bind(&key.0[..])
        .bind(relays)
        .bind(rmb_enc_key)
        .bind(time::now_micros())
        .fetch_one(&mut tx)
        .await?;
        tx.commit().await?;
        row.try_into()
    }

    pub async fn account(&self, id: AccountId) -> Result<Option<Account>, DbError> {
        let row: Option<AccountRow> = query(
            "SELECT id, public_key, relays, rmb_enc_key, created_at, updated_at
             FROM accounts WHERE id = $1",
        )
        .bind(column(id.0))
        .fetch_optional(&self.database)
        .await?;
        row.map(TryInto::try_into).transpose()
    }

    pub async fn account_by_key(&self, key: &KeyId) -> Result<Option<Account>, DbError> {
        let row: Option<AccountRow> = query(
            "SELECT id, public_key, relays, rmb_enc_key, created_at, updated_at
             FROM accounts WHERE public_key = $1",
        )
        .bind(&key.0[..])
        .fetch_optional(&self.database)
        .await?;
        row.map(TryInto::try_into).transpose()
    }

    /// Whether there was such an account.
    pub async fn update_account(
        &self,
        id: AccountId,
        relays: Option<&[String]>,
        rmb_enc_key: &str,
    ) -> Result<bool, DbError> {
        let relays = relays.map(serde_json::to_string).transpose().map_err(DbError::corrupt)?;
        let mut tx = self.begin().await?;
        let changed = query(
            "UPDATE accounts SET relays = $2, rmb_enc_key = $3, updated_at = $4 WHERE id = $1",
        )
        .bind(column(id.0))
        .bind(relays)
        .bind(rmb_enc_key)
        .bind(time::now_micros())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(changed > 0)
    }
}
