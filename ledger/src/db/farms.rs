//! Farms.

use rhizome_database::{FromRow, query};
use rhizome_model::registrar::{Farm, NewFarm};
use rhizome_model::{AccountId, FarmId};

use super::{Db, DbError, Page, column, id_of, next_id};
use crate::time;

#[derive(FromRow)]
struct FarmRow {
    id: i64,
    name: String,
    account: i64,
    stellar_address: String,
    dedicated: bool,
    created_at: i64,
    updated_at: i64,
}

impl From<FarmRow> for Farm {
    fn from(row: FarmRow) -> Self {
        Self {
            farm_id: FarmId(id_of(row.id)),
            farm_name: row.name,
            twin_id: AccountId(id_of(row.account)),
            stellar_address: row.stellar_address,
            dedicated: row.dedicated,
            created_at: time::rfc3339(row.created_at),
            updated_at: time::rfc3339(row.updated_at),
        }
    }
}

/// Which farms; what is not named does not matter.
#[derive(Debug, Default)]
pub struct FarmFilter {
    pub id: Option<u64>,
    /// A part of the name, in letters of any case.
    pub name_part: Option<String>,
    pub account: Option<u64>,
}

impl Db {
    /// [`DbError::Duplicate`] when the name is taken.
    pub async fn create_farm(&self, farm: &NewFarm) -> Result<FarmId, DbError> {
        let mut tx = self.begin().await?;
        let id = next_id(&mut tx, "farm").await?;
        query(
            "INSERT INTO farms (id, name, account, stellar_address, dedicated, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $6)",
        )
        .bind(id)
        .bind(&farm.farm_name)
        .bind(column(farm.twin_id.0))
        .bind(farm.stellar_address.as_deref().unwrap_or_default())
        .bind(farm.dedicated)
        .bind(time::now_micros())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(FarmId(id_of(id)))
    }

    pub async fn farm(&self, id: FarmId) -> Result<Option<Farm>, DbError> {
        let filter = FarmFilter { id: Some(id.0), ..FarmFilter::default() };
        Ok(self.farms(&filter, Page { limit: 1, offset: 0 }).await?.pop())
    }

    pub async fn farms(&self, filter: &FarmFilter, page: Page) -> Result<Vec<Farm>, DbError> {
        let pattern = filter.name_part.as_deref().map(pattern_of_part);
        let rows: Vec<FarmRow> = query(
            r"SELECT id, name, account, stellar_address, dedicated, created_at, updated_at
              FROM farms
              WHERE (CAST($1 AS BIGINT) IS NULL OR id = $1)
                AND (CAST($2 AS TEXT) IS NULL OR lower(name) LIKE $2 ESCAPE '\')
                AND (CAST($3 AS BIGINT) IS NULL OR account = $3)
              ORDER BY id LIMIT $4 OFFSET $5",
        )
        .bind(filter.id.map(column))
        .bind(pattern)
        .bind(filter.account.map(column))
        .bind(page.limit)
        .bind(page.offset)
        .fetch_all(&self.database)
        .await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }

    /// Changes what is given. [`DbError::Duplicate`] when the name is taken.
    pub async fn update_farm(
        &self,
        id: FarmId,
        name: Option<&str>,
        stellar_address: Option<&str>,
    ) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        query(
            "UPDATE farms SET name = COALESCE($2, name),
                              stellar_address = COALESCE($3, stellar_address), updated_at = $4
             WHERE id = $1",
        )
        .bind(column(id.0))
        .bind(name)
        .bind(stellar_address)
        .bind(time::now_micros())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }
}

/// The LIKE pattern of a part of a name; signs that LIKE knows stand for themselves.
fn pattern_of_part(part: &str) -> String {
    let mut pattern = String::from("%");
    for c in part.chars().flat_map(char::to_lowercase) {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}
