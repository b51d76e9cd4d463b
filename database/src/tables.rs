//! Whole tables, whatever they are: for copies from one store to another.

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Column, FromRow, Row, TypeInfo, ValueRef};

use crate::{Database, Error, Store, Tx, Value, query, query_built};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Int,
    Bool,
    Text,
    Bytes,
}

impl Kind {
    /// The null of this kind.
    pub fn null(self) -> Value {
        match self {
            Self::Int => Value::Int(None),
            Self::Bool => Value::Bool(None),
            Self::Text => Value::Text(None),
            Self::Bytes => Value::Bytes(None),
        }
    }
}

/// The rows of a table. Without rows it has no columns either.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    pub columns: Vec<(String, Kind)>,
    pub rows: Vec<Vec<Value>>,
}

impl Database {
    /// A transaction that sees the whole database as it is now, and changes nothing.
    pub async fn snapshot(&self) -> Result<Tx, Error> {
        self.begin_with("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", None).await
    }

    /// The names of all tables but those of migrations; each after those that it refers to.
    pub async fn tables(&self) -> Result<Vec<String>, Error> {
        // In the order in which they were made.
        let sql = match self.store() {
            Store::Sqlite => {
                "SELECT name FROM sqlite_master
                 WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> '_sqlx_migrations'
                 ORDER BY rowid"
            }
            Store::Postgres => {
                "SELECT CAST(relname AS TEXT) FROM pg_class
                 WHERE relkind = 'r' AND relnamespace = CAST(current_schema() AS regnamespace)
                   AND relname <> '_sqlx_migrations'
                 ORDER BY oid"
            }
        };
        let names: Vec<(String,)> = query(sql).fetch_all(self).await?;
        Ok(names.into_iter().map(|(name,)| name).collect())
    }
}

/// All rows of a table, whose name [`Database::tables`] has told.
pub async fn read_table(tx: &mut Tx, name: &str) -> Result<Table, Error> {
    let rows: Vec<AnyRow> = query_built(format!("SELECT * FROM {name}")).fetch_all(tx).await?;
    let columns = rows.first().map(|row| row.columns.clone()).unwrap_or_default();
    Ok(Table { columns, rows: rows.into_iter().map(|row| row.values).collect() })
}

struct AnyRow {
    columns: Vec<(String, Kind)>,
    values: Vec<Value>,
}

/// A row whose columns are read by what the store says of their types.
macro_rules! any_row {
    ($row:ty, $kind:expr) => {
        impl FromRow<'_, $row> for AnyRow {
            fn from_row(row: &$row) -> sqlx::Result<Self> {
                let mut any = Self { columns: Vec::new(), values: Vec::new() };
                for (at, column) in row.columns().iter().enumerate() {
                    let kind = $kind(column.type_info().name());
                    any.columns.push((column.name().to_owned(), kind));
                    any.values.push(match kind {
                        _ if row.try_get_raw(at)?.is_null() => kind.null(),
                        Kind::Int => Value::Int(row.try_get(at)?),
                        Kind::Bool => Value::Bool(row.try_get(at)?),
                        Kind::Text => Value::Text(row.try_get(at)?),
                        Kind::Bytes => Value::Bytes(row.try_get_unchecked(at)?),
                    });
                }
                Ok(any)
            }
        }
    };
}
// SQLite does not know the word BYTEA.
any_row!(SqliteRow, |name| match name {
    "INTEGER" => Kind::Int,
    "BOOLEAN" => Kind::Bool,
    "TEXT" => Kind::Text,
    _ => Kind::Bytes,
});
any_row!(PgRow, |name| match name {
    "INT8" => Kind::Int,
    "BOOL" => Kind::Bool,
    "TEXT" => Kind::Text,
    _ => Kind::Bytes,
});
