//! The keys of accounts, with their history; and requests that were made before.

use rhizome_database::{On, Tx, query};
use rhizome_model::statement::{Account, AccountKey, KeyEnd, KeyEnding};
use rhizome_model::{AccountId, KeyId, NodeId};

use super::accounts::key_of;
use super::{Db, DbError, column, id_of};
use crate::time;

#[derive(sqlx::FromRow)]
struct MainRow {
    public_key: Vec<u8>,
    threshold: i64,
    created_at: i64,
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    key: Vec<u8>,
    weight: i64,
    since: i64,
    ended_at: Option<i64>,
    ended_how: Option<String>,
}

impl TryFrom<KeyRow> for AccountKey {
    type Error = DbError;

    fn try_from(row: KeyRow) -> Result<Self, DbError> {
        let how = match row.ended_how.as_deref() {
            None => None,
            Some("rotated") => Some(KeyEnding::Rotated),
            Some("revoked") => Some(KeyEnding::Revoked),
            Some(other) => return Err(DbError::corrupt(format!("a key that ended by {other}"))),
        };
        Ok(Self {
            key: key_of(row.key)?,
            weight: u32::try_from(row.weight).map_err(DbError::corrupt)?,
            since: row.since,
            ended: row.ended_at.zip(how).map(|(at, how)| KeyEnd { at, how }),
        })
    }
}

const fn word(how: KeyEnding) -> &'static str {
    match how {
        KeyEnding::Rotated => "rotated",
        KeyEnding::Revoked => "revoked",
    }
}

impl Db {
    /// An account with all its keys.
    pub async fn account_keys(&self, id: AccountId) -> Result<Option<Account>, DbError> {
        keys(&self.database, id).await
    }

    /// The account that has this key, or had it.
    pub async fn keyholder(&self, key: &KeyId) -> Result<Option<Account>, DbError> {
        match holder(&self.database, key).await? {
            Some(id) => self.account_keys(id).await,
            None => Ok(None),
        }
    }
}

/// The account that has this key, or had it.
pub async fn holder<'a>(on: impl Into<On<'a>>, key: &KeyId) -> Result<Option<AccountId>, DbError> {
    let found: Option<(i64,)> = query(
        "SELECT id FROM accounts WHERE public_key = $1
         UNION SELECT account FROM account_keys WHERE key = $1",
    )
    .bind(&key.0[..])
    .fetch_optional(on)
    .await?;
    Ok(found.map(|(id,)| AccountId(id_of(id))))
}

async fn keys(
    database: &rhizome_database::Database,
    id: AccountId,
) -> Result<Option<Account>, DbError> {
    let main = main_row(database, id).await?;
    let rows = key_rows(database, id).await?;
    main.map(|main| account(id, main, rows)).transpose()
}

/// The same within a change.
pub async fn keys_in(tx: &mut Tx, id: AccountId) -> Result<Option<Account>, DbError> {
    let main = main_row(&mut *tx, id).await?;
    let rows = key_rows(tx, id).await?;
    main.map(|main| account(id, main, rows)).transpose()
}

async fn main_row<'a>(on: impl Into<On<'a>>, id: AccountId) -> Result<Option<MainRow>, DbError> {
    query("SELECT public_key, threshold, created_at FROM accounts WHERE id = $1")
        .bind(column(id.0))
        .fetch_optional(on)
        .await
}

async fn key_rows<'a>(on: impl Into<On<'a>>, id: AccountId) -> Result<Vec<KeyRow>, DbError> {
    query(
        "SELECT key, weight, since, ended_at, ended_how FROM account_keys
         WHERE account = $1 ORDER BY place",
    )
    .bind(column(id.0))
    .fetch_all(on)
    .await
}

fn account(id: AccountId, main: MainRow, rows: Vec<KeyRow>) -> Result<Account, DbError> {
    if rows.is_empty() {
        let since = time::secs_of_micros(main.created_at);
        return Ok(Account::with_key(id, key_of(main.public_key)?, since));
    }
    let keys = rows.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    let threshold = u32::try_from(main.threshold).map_err(DbError::corrupt)?;
    Ok(Account { id, keys, threshold })
}

/// Writes down what has become of the keys of an account. [`DbError::Duplicate`] when one of them
/// is, or was, another account's.
pub async fn replace_keys(tx: &mut Tx, account: &Account) -> Result<(), DbError> {
    let id = column(account.id.0);
    for key in &account.keys {
        if holder(&mut *tx, &key.key).await?.is_some_and(|holder| holder != account.id) {
            return Err(DbError::Duplicate);
        }
    }
    query("DELETE FROM account_keys WHERE account = $1").bind(id).execute(&mut *tx).await?;
    for (place, key) in (0i64..).zip(&account.keys) {
        query(
            "INSERT INTO account_keys (key, account, place, weight, since, ended_at, ended_how)
             VALUES ($1, $2, $3, $4, $5, CAST($6 AS BIGINT), CAST($7 AS TEXT))",
        )
        .bind(&key.key.0[..])
        .bind(id)
        .bind(place)
        .bind(i64::from(key.weight))
        .bind(key.since)
        .bind(key.ended.map(|end| end.at))
        .bind(key.ended.map(|end| word(end.how)))
        .execute(&mut *tx)
        .await?;
    }
    if let Some(main) = account.main_key() {
        query("UPDATE accounts SET public_key = $2 WHERE id = $1")
            .bind(id)
            .bind(&main.0[..])
            .execute(&mut *tx)
            .await?;
    }
    query("UPDATE accounts SET revoked = $2, threshold = $3, updated_at = $4 WHERE id = $1")
        .bind(id)
        .bind(account.main_key().is_none())
        .bind(i64::from(account.threshold))
        .bind(time::now_micros())
        .execute(tx)
        .await?;
    Ok(())
}

pub async fn is_account(tx: &mut Tx, id: AccountId) -> Result<bool, DbError> {
    Ok(main_row(tx, id).await?.is_some())
}

/// The node of an account.
pub async fn node_of(tx: &mut Tx, account: AccountId) -> Result<Option<NodeId>, DbError> {
    let found: Option<(i64,)> = query("SELECT id FROM nodes WHERE account = $1")
        .bind(column(account.0))
        .fetch_optional(tx)
        .await?;
    Ok(found.map(|(id,)| NodeId(id_of(id))))
}

/// Whether something comes for the first time. Noted until `expires`, in Unix seconds: in this
/// process, in others on the same database, after a restart.
pub async fn first_time(
    tx: &mut Tx,
    once: &[u8; 32],
    expires: i64,
    now: i64,
) -> Result<bool, DbError> {
    query("DELETE FROM nonces WHERE expires < $1").bind(now).execute(&mut *tx).await?;
    let noted =
        query("INSERT INTO nonces (once, expires) VALUES ($1, $2) ON CONFLICT (once) DO NOTHING")
            .bind(&once[..])
            .bind(expires)
            .execute(tx)
            .await?;
    Ok(noted > 0)
}
