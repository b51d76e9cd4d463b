//! Group commit: what piled up while one transaction was being committed goes into the next.
//!
//! ```text
//!   change ─▶ inbox ─▶ one task: take all that is there ─▶ begin ─▶ each in turn ─▶ commit ─▶ answers
//! ```
//!
//! No timer: alone, a change is committed at once; under load, a transaction is as large as a commit
//! is slow. A change either refuses before it writes anything, or is made as a whole. Should one of a
//! transaction fail, each of them is made alone, and only those that fail are told so.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};

use super::{Result, StoreError};

/// Changes that wait for the next transaction; more wait outside.
const INBOX: usize = 1024;
/// The longest transaction: whoever waits for one waits for all of it.
const MAX_CHANGES: usize = 128;

/// What a power cut may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The last moments, of what its sender tells again (`synchronous = NORMAL`).
    Told,
    /// Nothing (`synchronous = FULL`).
    Promised,
}

/// A change under way.
pub type Making<'c, T> = BoxFuture<'c, Result<T>>;

type Make = Box<dyn for<'c> Fn(&'c mut SqliteConnection) -> Making<'c, ()> + Send + Sync>;

struct Change {
    durability: Durability,
    make: Make,
    answer: oneshot::Sender<Result<()>>,
}

#[derive(Clone)]
pub struct Writer {
    inbox: mpsc::Sender<Change>,
}

impl Writer {
    /// Call it within a Tokio runtime.
    pub fn new(connection: SqliteConnection) -> Self {
        let (inbox, outbox) = mpsc::channel(INBOX);
        tokio::spawn(write(connection, outbox));
        Self { inbox }
    }

    /// Makes a change with these values, and answers when it is committed. It may be made twice, of
    /// which only the second counts.
    pub async fn write<A, T>(
        &self,
        durability: Durability,
        values: A,
        change: for<'c> fn(&'c mut SqliteConnection, &'c A) -> Making<'c, T>,
    ) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
    {
        let (values, made) = (Arc::new(values), Arc::new(Mutex::new(None)));
        let keep = made.clone();
        let make: Make = Box::new(move |conn| {
            let (values, keep) = (values.clone(), keep.clone());
            Box::pin(async move {
                let value = change(conn, &values).await?;
                *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
                Ok(())
            })
        });
        let (answer, answered) = oneshot::channel();
        let change = Change { durability, make, answer };
        let stopped = || StoreError::Sql(sqlx::Error::WorkerCrashed);
        self.inbox.send(change).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())??;
        let value = made.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or_else(stopped)
    }
}

/// The connection that changes things, and how it syncs now.
struct Pen {
    connection: SqliteConnection,
    durability: Option<Durability>,
}

async fn write(connection: SqliteConnection, mut inbox: mpsc::Receiver<Change>) {
    let mut pen = Pen { connection, durability: None };
    let mut changes = Vec::new();
    while inbox.recv_many(&mut changes, MAX_CHANGES).await > 0 {
        match pen.make(&changes).await {
            Ok(()) => {
                for change in changes.drain(..) {
                    // Whoever asked may be gone.
                    let _ = change.answer.send(Ok(()));
                }
            }
            Err(error) if changes.len() == 1 => {
                if let Some(change) = changes.pop() {
                    let _ = change.answer.send(Err(error));
                }
            }
            Err(_) => {
                for change in changes.drain(..) {
                    let done = pen.make(std::slice::from_ref(&change)).await;
                    let _ = change.answer.send(done);
                }
            }
        }
    }
}

impl Pen {
    async fn make(&mut self, changes: &[Change]) -> Result<()> {
        let durability = changes.iter().map(|c| c.durability).max();
        // At once for writing: a transaction that reads first and then wants to write can fail.
        let begin = match durability {
            same if same == self.durability => "BEGIN IMMEDIATE",
            Some(Durability::Promised) => "PRAGMA synchronous = FULL; BEGIN IMMEDIATE",
            Some(Durability::Told) | None => "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE",
        };
        // Unknown again, should this fail.
        self.durability = None;
        let mut tx = self.connection.begin_with(begin).await?;
        self.durability = durability;
        for change in changes {
            (change.make)(&mut tx).await?;
        }
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use sqlx::ConnectOptions;
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

    use super::*;

    async fn insert(conn: &mut SqliteConnection, n: i64) -> Result<i64> {
        sqlx::query("INSERT INTO t (n) VALUES ($1)").bind(n).execute(conn).await?;
        Ok(n)
    }

    #[tokio::test]
    async fn who_fails_fails_alone_however_many_share_its_commit() {
        let folder = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let mut conn = options.connect().await.unwrap();
        sqlx::query("CREATE TABLE t (n BIGINT PRIMARY KEY)").execute(&mut conn).await.unwrap();
        let writer = Writer::new(conn);
        // 0 to 29, and 0 to 9 once more in between.
        let numbers: Vec<i64> = (0..20).chain(0..10).chain(20..30).collect();
        let changes = numbers.iter().map(|n| {
            let durability = if n % 3 == 0 { Durability::Promised } else { Durability::Told };
            writer.write(durability, *n, |conn, n| Box::pin(insert(conn, *n)))
        });
        let done = join_all(changes).await;
        for (at, (number, done)) in numbers.iter().zip(done).enumerate() {
            match done {
                Ok(answer) => assert_eq!(answer, *number),
                Err(error) => assert!((20..30).contains(&at), "{at}: {error:?}"),
            }
        }
        let mut conn = options.connect().await.unwrap();
        let rows: Vec<i64> =
            sqlx::query_scalar("SELECT n FROM t ORDER BY n").fetch_all(&mut conn).await.unwrap();
        assert_eq!(rows, (0..30).collect::<Vec<_>>());
    }
}
