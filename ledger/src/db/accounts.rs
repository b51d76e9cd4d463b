//! Accounts.

use rhizome_database::{FromRow, Tx, query};
use rhizome_model::registrar::Account;
use rhizome_model::statement::Subject;
use rhizome_model::{AccountId, KeyId};

use super::{Db, DbError, audit, column, id_of, keys, next_id};
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

/// An account to be made.
#[derive(Debug)]
pub struct NewAccountRow {
    key: KeyId,
    relays: Option<String>,
    rmb_enc_key: String,
}

/// [`DbError::Duplicate`] when the key has an account.
pub type AccountMade = Result<Account, DbError>;

/// Makes accounts in one commit. Who is refused changes nothing.
pub(super) async fn create(
    tx: &mut Tx,
    accounts: Vec<NewAccountRow>,
) -> Result<Vec<AccountMade>, DbError> {
    let mut made = Vec::with_capacity(accounts.len());
    for account in accounts {
        // A key that was ever an account's is no other's.
        made.push(match keys::holder(&mut *tx, &account.key).await? {
            Some(_) => Err(DbError::Duplicate),
            None => insert(tx, account).await?.try_into(),
        });
    }
    audit::note(tx, made.iter().flatten().map(noted)).await?;
    Ok(made)
}

fn noted(account: &Account) -> audit::Change {
    audit::Change {
        account: Some(account.twin_id),
        key: Some(account.public_key),
        action: "account.create",
        subject: Subject::Account(account.twin_id),
        detail: "{}".into(),
    }
}

async fn insert(tx: &mut Tx, account: NewAccountRow) -> Result<AccountRow, DbError> {
    let id = next_id(tx, "account").await?;
    query(
        "INSERT INTO accounts (id, public_key, relays, rmb_enc_key, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $5)
         RETURNING id, public_key, relays, rmb_enc_key, created_at, updated_at",
    )
    .bind(id)
    .bind(&account.key.0[..])
    .bind(account.relays)
    .bind(account.rmb_enc_key)
    .bind(time::now_micros())
    .fetch_one(tx)
    .await
}

impl Db {
    /// [`DbError::Duplicate`] when the key has an account.
    pub async fn create_account(
        &self,
        key: KeyId,
        relays: Option<&[String]>,
        rmb_enc_key: &str,
    ) -> AccountMade {
        let relays = relays.map(serde_json::to_string).transpose().map_err(DbError::corrupt)?;
        let account = NewAccountRow { key, relays, rmb_enc_key: rmb_enc_key.to_owned() };
        self.accounts.submit(account).await?
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
             FROM accounts WHERE id IN (
                 SELECT id FROM accounts WHERE public_key = $1
                 UNION SELECT account FROM account_keys WHERE key = $1 AND ended_at IS NULL)",
        )
        .bind(&key.0[..])
        .fetch_optional(&self.database)
        .await?;
        row.map(TryInto::try_into).transpose()
    }

    /// The key that an account signs with on the routes of v4; none once all its keys are revoked.
    pub async fn main_key(&self, id: AccountId) -> Result<Option<Option<KeyId>>, DbError> {
        let row: Option<(Vec<u8>, bool)> =
            query("SELECT public_key, revoked FROM accounts WHERE id = $1")
                .bind(column(id.0))
                .fetch_optional(&self.database)
                .await?;
        row.map(|(key, revoked)| Ok((!revoked).then_some(key_of(key)?))).transpose()
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
        .bind(relays.as_deref())
        .bind(rmb_enc_key)
        .bind(time::now_micros())
        .execute(&mut tx)
        .await?;
        if changed > 0 {
            let (account, subject) = (Some(id), Subject::Account(id));
            let detail = serde_json::json!({ "relays": relays, "rmb_enc_key": rmb_enc_key });
            let (key, detail) = (None, detail.to_string());
            let change = audit::Change { account, key, action: "account.update", subject, detail };
            audit::note(&mut tx, [change]).await?;
        }
        tx.commit().await?;
        Ok(changed > 0)
    }
}
