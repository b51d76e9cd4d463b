/// Why something was not read or changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A row with this key or name is there already.
    #[error("it exists already")]
    Duplicate,
    /// A row that it refers to is not there.
    #[error("what it refers to does not exist")]
    Dangling,
    // Whoever waited for one commit gets the one reason why it failed.
    #[error("{0}")]
    Sql(std::sync::Arc<sqlx::Error>),
    #[error("the database holds what we never wrote: {0}")]
    Corrupt(String),
}

impl Error {
    /// What a column holds is not what we write into it.
    pub fn corrupt(why: impl std::fmt::Display) -> Self {
        Self::Corrupt(why.to_string())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(e) if e.is_unique_violation() => Self::Duplicate,
            sqlx::Error::Database(e) if e.is_foreign_key_violation() => Self::Dangling,
            _ => Self::Sql(std::sync::Arc::new(error)),
        }
    }
}
