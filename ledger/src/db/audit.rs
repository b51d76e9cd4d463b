//! The audit log: every change, in the transaction that makes it, each row bound to the one before.
//!
//! ```text
//!   hash(n) = blake3("… audit v1", number, at, account, key, action, subject, detail, hash(n-1))
//! ```
//!
//! A row that is changed, removed or moved breaks the chain there or right after. Rows that are cut
//! off at the end are missed by the count in `sequences`; who can write that too is found out by
//! anybody who has kept a later number and hash (`/v2/audit`).

use rhizome_database::{Database, Tx, Value, query};
use rhizome_model::statement::Subject;
use rhizome_model::{AccountId, KeyId};

use super::{Db, DbError, column, id_of, rows};
use crate::time;

/// Rows that are read at a time.
const BATCH: i64 = 1000;

/// What was changed, and by whom.
#[derive(Debug, Clone)]
pub struct Change {
    pub account: Option<AccountId>,
    /// The key that signed the request.
    pub key: Option<KeyId>,
    /// Such as `node.approve`.
    pub action: &'static str,
    /// Such as `node/7`.
    pub subject: Subject,
    /// JSON.
    pub detail: String,
}

/// A row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// From 1, without gaps.
    pub number: u64,
    /// RFC 3339.
    pub at: String,
    pub account: Option<AccountId>,
    /// The key that signed the request; empty where none is known.
    pub key: String,
    pub action: String,
    pub subject: String,
    /// JSON, as it was written.
    pub detail: String,
    /// 64 hexadecimal digits; over this row and the hash of the one before.
    pub hash: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    number: i64,
    at: i64,
    account: Option<i64>,
    key: String,
    action: String,
    subject: String,
    detail: String,
    hash: Vec<u8>,
}

/// What a walk through the whole log found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every row is as it was written. The last one, to keep elsewhere.
    Whole { rows: u64, last_hash: String },
    /// The first row that is not.
    Broken { number: u64, why: String },
}

impl Row {
    fn values(self) -> Vec<Value> {
        vec![
            self.number.into(),
            self.at.into(),
            self.account.into(),
            self.key.into(),
            self.action.into(),
            self.subject.into(),
            self.detail.into(),
            self.hash.into(),
        ]
    }

    fn hash(&self, before: &[u8]) -> [u8; 32] {
        let mut hash = blake3::Hasher::new_derive_key("rhizome 2026 ledger audit v1");
        let account = self.account.map_or_else(String::new, |a| a.to_string());
        let (number, at) = (self.number.to_string(), self.at.to_string());
        let texts = [&number, &at, &account, &self.key, &self.action, &self.subject, &self.detail];
        // Each with its length before it: what is moved from one field to the next is another row.
        for bytes in texts.map(String::as_bytes).into_iter().chain([before]) {
            hash.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        *hash.finalize().as_bytes()
    }
}

impl From<Row> for AuditEntry {
    fn from(row: Row) -> Self {
        Self {
            number: id_of(row.number),
            at: time::rfc3339(row.at),
            account: row.account.map(|a| AccountId(id_of(a))),
            key: row.key,
            action: row.action,
            subject: row.subject,
            detail: row.detail,
            hash: hex::encode(row.hash),
        }
    }
}

/// Adds rows within a change, one for each of what it does.
pub async fn note(tx: &mut Tx, changes: impl IntoIterator<Item = Change>) -> Result<(), DbError> {
    let changes: Vec<Change> = changes.into_iter().collect();
    if changes.is_empty() {
        return Ok(());
    }
    let count = i64::try_from(changes.len()).unwrap_or(i64::MAX);
    let (last,): (i64,) =
        query("UPDATE sequences SET last = last + $1 WHERE name = 'audit' RETURNING last")
            .bind(count)
            .fetch_one(&mut *tx)
            .await?;
    let first = last - count + 1;
    let before: Option<(Vec<u8>,)> = query("SELECT hash FROM audit WHERE number = $1")
        .bind(first - 1)
        .fetch_optional(&mut *tx)
        .await?;
    let mut before = before.map_or_else(Vec::new, |(hash,)| hash);
    let at = time::now_micros();
    let mut rows = Vec::with_capacity(changes.len());
    for (number, change) in (first..).zip(changes) {
        let mut row = Row {
            number,
            at,
            account: change.account.map(|a| column(a.0)),
            key: change.key.map_or_else(String::new, |k| k.to_string()),
            action: change.action.into(),
            subject: change.subject.to_string(),
            detail: change.detail,
            hash: Vec::new(),
        };
        row.hash = row.hash(&before).to_vec();
        before.clone_from(&row.hash);
        rows.push(row.values());
    }
    let target = "audit (number, at, account, key, action, subject, detail, hash)";
    rows::insert(tx, target, "", rows).await
}

impl Db {
    pub async fn audit_after(&self, number: u64, limit: i64) -> Result<Vec<AuditEntry>, DbError> {
        let rows = rows_after(&self.database, column(number), limit).await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}

/// Walks through the whole log. `kept` is a number and the hash that this row had.
pub async fn verify(database: &Database, kept: Option<(u64, String)>) -> Result<Verdict, DbError> {
    let broken =
        |number: i64, why: &str| Ok(Verdict::Broken { number: id_of(number), why: why.to_owned() });
    // Before the rows: what is added meanwhile is more than counted, never less.
    let (counted,): (i64,) =
        query("SELECT last FROM sequences WHERE name = 'audit'").fetch_one(database).await?;
    let (mut last, mut before) = (0, Vec::new());
    loop {
        let rows = rows_after(database, last, BATCH).await?;
        if rows.is_empty() {
            break;
        }
        for row in rows {
            if row.number != last + 1 {
                return broken(last + 1, "the row is missing");
            }
            if row.hash(&before)[..] != row.hash[..] {
                return broken(row.number, "the row, or one before it, is not what was written");
            }
            let hash = hex::encode(&row.hash);
            if kept.as_ref().is_some_and(|(n, h)| *n == id_of(row.number) && *h != hash) {
                return broken(row.number, "its hash is not the one that was kept");
            }
            (last, before) = (row.number, row.hash);
        }
    }
    let expected = kept.map_or(0, |(number, _)| column(number)).max(counted);
    if last < expected {
        return broken(last + 1, "the rows from here on are missing");
    }
    Ok(Verdict::Whole { rows: id_of(last), last_hash: hex::encode(before) })
}

async fn rows_after(database: &Database, number: i64, limit: i64) -> Result<Vec<Row>, DbError> {
    query(
        "SELECT number, at, account, key, action, subject, detail, hash FROM audit
             WHERE number > $1 ORDER BY number LIMIT $2",
    )
    .bind(number)
    .bind(limit)
    .fetch_all(database)
    .await
}
