//! SQL on SQLite or PostgreSQL, as a URL says; every statement is written once.
//!
//! ```text
//!   DatabaseUrl ─▶ Database::open ─▶ query("… $1 …").bind(x).fetch_all(&database)      reads
//!                                └─▶ begin() ─▶ Tx ─▶ query(…).execute(&mut tx) ─▶ commit   changes
//!                  Batches: what piles up during one commit goes into the next together
//! ```
//!
//! - What both stores take: `BIGINT`, `TEXT`, `BYTEA`, `BOOLEAN`, `$n`, `ON CONFLICT … DO UPDATE`,
//!   `RETURNING`, `UPDATE … FROM`. A parameter that can be null or stands in `VALUES` has a `CAST`.
//! - A transaction that changes something holds the write lock from its beginning, also against
//!   other processes on the same database: whoever reads first and writes later can rely on it.
//! - A commit is on disk when it returns, so a kill -9 or a power cut loses nothing acknowledged.
//!
//! Must not know: any table.

mod batches;
mod error;
mod pool;
mod query;
mod server;
mod tables;
mod url;

pub use batches::Batches;
pub use error::Error;
pub use pool::{Database, Tx};
pub use query::{On, Query, Record, Value, query, query_built};
pub use server::PostgresServer;
pub use sqlx::FromRow;
pub use sqlx::migrate::Migrator;
pub use tables::{Kind, Table, read_table};
pub use url::{DatabaseUrl, Store};
