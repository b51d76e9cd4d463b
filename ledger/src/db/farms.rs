//! Farms.

use rhizome_database::{FromRow, query};
use rhizome_model::registrar::{Farm, NewFarm};
use rhizome_model::statement::Subject;
use rhizome_model::{AccountId, FarmId};

use super::conditions::Conditions;
use super::{Db, DbError, Page, access, audit, column, id_of, next_id};
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
    pub dedicated: Option<bool>,
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
        let detail = serde_json::to_string(farm).map_err(DbError::corrupt)?;
        let made = changed("farm.create", Some(farm.twin_id), FarmId(id_of(id)), detail);
        audit::note(&mut tx, [made]).await?;
        tx.commit().await?;
        Ok(FarmId(id_of(id)))
    }

    pub async fn farm(&self, id: FarmId) -> Result<Option<Farm>, DbError> {
        let filter = FarmFilter { id: Some(id.0), ..FarmFilter::default() };
        Ok(self.farms(&filter, Page { limit: 1, offset: 0 }).await?.pop())
    }

    pub async fn farms(&self, filter: &FarmFilter, page: Page) -> Result<Vec<Farm>, DbError> {
        let filter = filter.conditions();
        let (limit, offset) = (filter.next(), filter.next() + 1);
        let sql = format!(
            "SELECT id, name, account, stellar_address, dedicated, created_at, updated_at
             FROM {} ORDER BY id LIMIT ${limit} OFFSET ${offset}",
            filter.from(),
        );
        let rows: Vec<FarmRow> =
            filter.bound(sql).bind(page.limit).bind(page.offset).fetch_all(&self.database).await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }

    /// How many farms there are of a filter.
    pub async fn count_farms(&self, filter: &FarmFilter) -> Result<u64, DbError> {
        let filter = filter.conditions();
        let sql = format!("SELECT COUNT(*) FROM {}", filter.from());
        let (count,) = filter.bound(sql).fetch_one::<(i64,)>(&self.database).await?;
        Ok(id_of(count))
    }

    /// Changes what is given. [`DbError::Duplicate`] when the name is taken.
    pub async fn update_farm(
        &self,
        id: FarmId,
        name: Option<&str>,
        stellar_address: Option<&str>,
        dedicated: Option<bool>,
    ) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        query(
            "UPDATE farms SET name = COALESCE($2, name),
                              stellar_address = COALESCE($3, stellar_address),
                              dedicated = COALESCE(CAST($4 AS BOOLEAN), dedicated),
                              updated_at = $5
             WHERE id = $1",
        )
        .bind(column(id.0))
        .bind(name)
        .bind(stellar_address)
        .bind(dedicated)
        .bind(time::now_micros())
        .execute(&mut tx)
        .await?;
        let detail = serde_json::json!({
            "farm_name": name, "stellar_address": stellar_address, "dedicated": dedicated,
        });
        let owner = access::owner_of(&mut tx, id).await?;
        let change = changed("farm.update", owner, id, detail.to_string());
        audit::note(&mut tx, [change]).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// On the routes of v4 only the owner makes and changes a farm.
fn changed(
    action: &'static str,
    owner: Option<AccountId>,
    farm: FarmId,
    detail: String,
) -> audit::Change {
    audit::Change { account: owner, key: None, action, subject: Subject::Farm(farm), detail }
}

impl FarmFilter {
    fn conditions(&self) -> Conditions {
        let mut conditions = Conditions::new("id", "farms");
        conditions.add_some("id", "=", self.id.map(column));
        conditions.add_some("account", "=", self.account.map(column));
        conditions.add_some("dedicated", "=", self.dedicated);
        if let Some(part) = &self.name_part {
            conditions.add(r"lower(name) LIKE {} ESCAPE '\'", pattern_of_part(part));
        }
        conditions
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
