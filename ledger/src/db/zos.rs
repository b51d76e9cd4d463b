//! The version of Zero-OS that nodes should run.

use rhizome_database::{On, query};

use super::{Db, DbError};

impl Db {
    pub async fn zos_version(&self) -> Result<Option<String>, DbError> {
        read(&self.database).await
    }

    /// False when it is this one already.
    pub async fn set_zos_version(&self, version: &str) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        if read(&mut tx).await?.as_deref() == Some(version) {
            return Ok(false);
        }
        query(
            "INSERT INTO settings (name, value) VALUES ('zos_version', $1)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(version)
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }
}

async fn read<'a>(on: impl Into<On<'a>>) -> Result<Option<String>, DbError> {
    let found = query("SELECT value FROM settings WHERE name = 'zos_version'")
        .fetch_optional::<(String,)>(on)
        .await?;
    Ok(found.map(|(version,)| version))
}
