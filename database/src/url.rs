//! Where a database is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `sqlite:PATH` or `postgres://USER@HOST/NAME`.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    Sqlite(PathBuf),
    /// With whatever sqlx knows behind it: `?host=/run/postgresql`, `?sslmode=verify-full`, …
    Postgres(String),
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Sqlite,
    Postgres,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        })
    }
}

impl DatabaseUrl {
    pub fn sqlite(path: impl AsRef<Path>) -> Self {
        Self::Sqlite(path.as_ref().to_owned())
    }

    pub fn store(&self) -> Store {
        match self {
            Self::Sqlite(_) => Store::Sqlite,
            Self::Postgres(_) => Store::Postgres,
        }
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            // Both forms that people know: sqlite:/a/b and sqlite:///a/b.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err("sqlite: needs a file, as in sqlite:/var/lib/rhizome/ledger.db".into());
            }
            return Ok(Self::Sqlite(path.into()));
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            text.parse::<sqlx::postgres::PgConnectOptions>()
                .map_err(|e| format!("not a URL of PostgreSQL: {e}"))?;
            return Ok(Self::Postgres(text.into()));
        }
        Err("a database is sqlite:FILE or postgres://USER:PASSWORD@HOST/NAME".into())
    }
}

/// Without the password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
                // A query may hold a password as well.
                let rest = rest.split_once('?').map_or(rest, |(place, _)| place);
                match rest.rsplit_once('@') {
                    Some((user, place)) => {
                        let user = user.split_once(':').map_or(user, |(user, _)| user);
                        write!(f, "{scheme}://{user}@{place}")
                    }
                    None => write!(f, "{scheme}://{rest}"),
                }
            }
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_stores_are_named_by_a_url() {
        for text in ["sqlite:/a/b.db", "sqlite:///a/b.db"] {
            assert_eq!(text.parse(), Ok(DatabaseUrl::sqlite("/a/b.db")));
        }
        assert_eq!("sqlite:b.db".parse(), Ok(DatabaseUrl::sqlite("b.db")));
        let url: DatabaseUrl = "postgres://me@host/ledger".parse().unwrap();
        assert_eq!(url.store(), Store::Postgres);
        for bad in ["", "sqlite:", "mysql://x", "/a/b", "postgres://me@host:port/x"] {
            assert!(bad.parse::<DatabaseUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for (text, shown) in [
            ("postgres://me:secret@host:1/db", "postgres://me@host:1/db"),
            ("postgres://me:se:cr@et@host/db?password=secret", "postgres://me@host/db"),
            ("postgresql://host/db", "postgresql://host/db"),
        ] {
            let url = DatabaseUrl::Postgres(text.into());
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.into(), shown.into()));
        }
    }
}
