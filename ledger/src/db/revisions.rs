//! Which subject changed when, for statements and the feed of changes.

use rhizome_database::{Tx, query};
use rhizome_model::statement::{Changed, MAX_CHANGES, Revision, Subject};

use super::{Db, DbError, column, id_of, next_id};

/// A page of the feed: up to which revision it reaches, whether there is more, and who changed.
pub struct Page {
    pub through: Revision,
    pub more: bool,
    pub changed: Vec<Changed>,
}

/// Says within a change that statements about these are outdated by it.
pub async fn touch(
    tx: &mut Tx,
    subjects: impl IntoIterator<Item = Subject>,
) -> Result<(), DbError> {
    for subject in subjects {
        let revision = next_id(tx, "revision").await?;
        query(
            "INSERT INTO subjects (subject, revision) VALUES ($1, $2)
             ON CONFLICT (subject) DO UPDATE SET revision = excluded.revision",
        )
        .bind(subject.to_string())
        .bind(revision)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

impl Db {
    /// The last change of all.
    pub async fn revision(&self) -> Result<Revision, DbError> {
        let (last,): (i64,) = query("SELECT last FROM sequences WHERE name = 'revision'")
            .fetch_one(&self.database)
            .await?;
        Ok(id_of(last))
    }

    /// The last change of a subject.
    pub async fn revision_of(&self, subject: &Subject) -> Result<Revision, DbError> {
        let found: Option<(i64,)> = query("SELECT revision FROM subjects WHERE subject = $1")
            .bind(subject.to_string())
            .fetch_optional(&self.database)
            .await?;
        Ok(found.map_or(0, |(revision,)| id_of(revision)))
    }

    pub async fn changes_after(&self, after: Revision) -> Result<Page, DbError> {
        // First the end, then the rows: a change between the two is in the next page as well.
        let newest = self.revision().await?;
        let limit = i64::try_from(MAX_CHANGES).unwrap_or(i64::MAX);
        let rows: Vec<(String, i64)> = query(
            "SELECT subject, revision FROM subjects WHERE revision > $1
             ORDER BY revision LIMIT $2",
        )
        .bind(column(after))
        .bind(limit)
        .fetch_all(&self.database)
        .await?;
        let changed = rows
            .into_iter()
            .map(|(subject, revision)| {
                let subject = subject.parse().map_err(DbError::corrupt)?;
                Ok(Changed { subject, revision: id_of(revision) })
            })
            .collect::<Result<Vec<_>, DbError>>()?;
        let more = changed.len() == MAX_CHANGES;
        let last = changed.last().filter(|_| more).map(|c| c.revision);
        Ok(Page { through: last.unwrap_or(newest), more, changed })
    }
}
