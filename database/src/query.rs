//! A statement with its values, for either store.

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::{Query as SqlxQuery, QueryAs};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, FromRow, Postgres, SqlSafeStr, SqlStr, Sqlite};

use crate::pool::{OpenTx, Pool};
use crate::{Database, Error, Tx};

/// What a statement is given. A null has a type too, for PostgreSQL.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Int(Option<i64>),
    Bool(Option<bool>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
}

macro_rules! value_of {
    ($($from:ty => $variant:ident($convert:expr);)*) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$variant(Some($convert(value)))
            }
        }
        impl From<Option<$from>> for Value {
            fn from(value: Option<$from>) -> Self {
                Self::$variant(value.map($convert))
            }
        }
    )*};
}
value_of! {
    i64 => Int(i64::from);
    bool => Bool(bool::from);
    String => Text(String::from);
    &str => Text(str::to_owned);
    &String => Text(String::clone);
    Vec<u8> => Bytes(Vec::from);
    &[u8] => Bytes(<[u8]>::to_vec);
}

/// What is read from a row: `#[derive(FromRow)]`, and tuples.
pub trait Record:
    for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static
{
}
impl<T> Record for T where
    T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static
{
}

/// Where a statement runs: `&database` for reads, `&mut tx` within a change.
pub enum On<'a> {
    Database(&'a Database),
    Tx(&'a mut Tx),
}

impl<'a> From<&'a Database> for On<'a> {
    fn from(database: &'a Database) -> Self {
        Self::Database(database)
    }
}

impl<'a> From<&'a mut Tx> for On<'a> {
    fn from(tx: &'a mut Tx) -> Self {
        Self::Tx(tx)
    }
}

pub struct Query {
    sql: SqlStr,
    values: Vec<Value>,
}

/// A statement.
pub fn query(sql: &'static str) -> Query {
    Query { sql: sql.into_sql_str(), values: Vec::new() }
}

/// A statement whose text was put together, from texts of ours only; never from what somebody sent.
pub fn query_built(sql: String) -> Query {
    Query { sql: AssertSqlSafe(sql).into_sql_str(), values: Vec::new() }
}

/// The values as a store's own.
macro_rules! arguments {
    ($arguments:ty, $values:expr) => {{
        let mut arguments = <$arguments>::default();
        for value in $values {
            match value {
                Value::Int(v) => arguments.add(v),
                Value::Bool(v) => arguments.add(v),
                Value::Text(v) => arguments.add(v),
                Value::Bytes(v) => arguments.add(v),
            }
            .map_err(sqlx::Error::Encode)?;
        }
        arguments
    }};
}

/// Does `$run` with sqlx's query and executor, wherever `$on` is.
macro_rules! run {
    ($on:expr, $sqlite:expr, $postgres:expr, |$query:ident, $at:ident| $run:expr) => {
        match $on.into() {
            On::Database(Database { pool: Pool::Sqlite($at), .. }) => {
                let $query = $sqlite;
                $run
            }
            On::Database(Database { pool: Pool::Postgres($at), .. }) => {
                let $query = $postgres;
                $run
            }
            On::Tx(Tx { open: OpenTx::Sqlite(tx), .. }) => {
                let ($query, $at) = ($sqlite, &mut **tx);
                $run
            }
            On::Tx(Tx { open: OpenTx::Postgres(tx), .. }) => {
                let ($query, $at) = ($postgres, &mut **tx);
                $run
            }
        }
    };
}

impl Query {
    /// The value of the next `$n`.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// How many rows it changed.
    pub async fn execute(self, on: impl Into<On<'_>>) -> Result<u64, Error> {
        run!(on, self.sqlite()?, self.postgres()?, |query, at| {
            Ok(query.execute(at).await?.rows_affected())
        })
    }

    pub async fn fetch_all<T: Record>(self, on: impl Into<On<'_>>) -> Result<Vec<T>, Error> {
        run!(on, self.sqlite_as()?, self.postgres_as()?, |query, at| Ok(query
            .fetch_all(at)
            .await?))
    }

    pub async fn fetch_one<T: Record>(self, on: impl Into<On<'_>>) -> Result<T, Error> {
        run!(on, self.sqlite_as()?, self.postgres_as()?, |query, at| Ok(query
            .fetch_one(at)
            .await?))
    }

    pub async fn fetch_optional<T: Record>(
        self,
        on: impl Into<On<'_>>,
    ) -> Result<Option<T>, Error> {
        run!(on, self.sqlite_as()?, self.postgres_as()?, |query, at| Ok(query
            .fetch_optional(at)
            .await?))
    }

    fn sqlite_as<T: Record>(self) -> Result<QueryAs<'static, Sqlite, T, SqliteArguments>, Error> {
        let arguments = arguments!(SqliteArguments, self.values);
        Ok(sqlx::query_as_with(self.sql, arguments))
    }

    fn postgres_as<T: Record>(self) -> Result<QueryAs<'static, Postgres, T, PgArguments>, Error> {
        let arguments = arguments!(PgArguments, self.values);
        Ok(sqlx::query_as_with(self.sql, arguments))
    }

    fn sqlite(self) -> Result<SqlxQuery<'static, Sqlite, SqliteArguments>, Error> {
        let arguments = arguments!(SqliteArguments, self.values);
        Ok(sqlx::query_with(self.sql, arguments))
    }

    fn postgres(self) -> Result<SqlxQuery<'static, Postgres, PgArguments>, Error> {
        let arguments = arguments!(PgArguments, self.values);
        Ok(sqlx::query_with(self.sql, arguments))
    }
}
