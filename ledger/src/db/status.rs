//! Nodes as a whole: what they registered, what they said last about themselves, what their farm's
//! owner thinks of them.

use rhizome_database::{Tx, query};
use rhizome_identity::mycelium_address;
use rhizome_model::api::{LedgerNodeView, NodeHealth, NodeReport};
use rhizome_model::{AccountId, FarmId, NodeId};

use super::accounts::key_of;
use super::{Db, DbError, Page, column, id_of};
use crate::time;

/// What a node said is believed this long.
const FRESH_SECS: i64 = 300;

/// Which nodes; what is not named does not matter.
#[derive(Debug, Default)]
pub struct StatusFilter {
    pub id: Option<u64>,
    pub farm: Option<u64>,
    pub approved: Option<bool>,
}

#[derive(sqlx::FromRow)]
struct StatusRow {
    id: i64,
    farm: i64,
    account: i64,
    public_key: Vec<u8>,
    approved: bool,
    supervisor_url: Option<String>,
    last_seen: i64,
    capacity: Option<String>,
    reasons: Option<String>,
    signed_at: Option<i64>,
}

impl StatusRow {
    fn view(self, now: i64) -> Result<LedgerNodeView, DbError> {
        let key = key_of(self.public_key)?;
        // A node that does not know it has said null.
        let capacity = self.capacity.as_deref().map(serde_json::from_str::<Option<_>>).transpose();
        let reasons = self.reasons.as_deref().map(serde_json::from_str).transpose();
        let health = match (reasons.map_err(DbError::corrupt)?, self.signed_at) {
            (Some(_), Some(at)) if now.saturating_sub(at) > FRESH_SECS => NodeHealth::Silent,
            (Some(reasons), Some(_)) => match <Vec<String>>::is_empty(&reasons) {
                true => NodeHealth::Healthy,
                false => NodeHealth::Unhealthy { reasons },
            },
            _ => NodeHealth::Unknown,
        };
        Ok(LedgerNodeView {
            id: NodeId(id_of(self.id)),
            farm: FarmId(id_of(self.farm)),
            account: AccountId(id_of(self.account)),
            key,
            address: mycelium_address(&key),
            approved: self.approved,
            supervisor_url: self.supervisor_url,
            online: self.last_seen > time::online_since(),
            // 0 before the first report.
            last_seen: Some(self.last_seen).filter(|seen| *seen > 0).map(time::rfc3339),
            capacity: capacity.map_err(DbError::corrupt)?.flatten(),
            health,
            reported_at: self.signed_at.map(|at| time::rfc3339(time::micros_of_secs(at))),
        })
    }
}

impl Db {
    pub async fn node_view(&self, id: NodeId, now: i64) -> Result<Option<LedgerNodeView>, DbError> {
        let filter = StatusFilter { id: Some(id.0), ..StatusFilter::default() };
        Ok(self.node_views(&filter, Page { limit: 1, offset: 0 }, now).await?.pop())
    }

    pub async fn node_views(
        &self,
        filter: &StatusFilter,
        page: Page,
        now: i64,
    ) -> Result<Vec<LedgerNodeView>, DbError> {
        let rows: Vec<StatusRow> = query(
            "SELECT n.id, n.farm, n.account, a.public_key,
                    (n.approved OR f.account = n.account) AS approved, n.supervisor_url,
                    p.last_seen, s.capacity, s.reasons, s.signed_at
             FROM nodes n JOIN accounts a ON a.id = n.account JOIN farms f ON f.id = n.farm
                          JOIN presence p ON p.node = n.id
                          LEFT JOIN node_status s ON s.node = n.id
             WHERE (CAST($1 AS BIGINT) IS NULL OR n.id = $1)
               AND (CAST($2 AS BIGINT) IS NULL OR n.farm = $2)
               AND (CAST($3 AS BOOLEAN) IS NULL OR (n.approved OR f.account = n.account) = $3)
             ORDER BY n.id LIMIT $4 OFFSET $5",
        )
        .bind(filter.id.map(column))
        .bind(filter.farm.map(column))
        .bind(filter.approved)
        .bind(page.limit)
        .bind(page.offset)
        .fetch_all(&self.database)
        .await?;
        rows.into_iter().map(|row| row.view(now)).collect()
    }
}

/// Whether it is newer than what the node said before: only then it is written down.
pub async fn put_report(
    tx: &mut Tx,
    node: NodeId,
    report: &NodeReport,
    signed_at: i64,
) -> Result<bool, DbError> {
    let written = query(
        "INSERT INTO node_status (node, signed_at, received_at, capacity, reasons)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (node) DO UPDATE
         SET signed_at = excluded.signed_at, received_at = excluded.received_at,
             capacity = excluded.capacity, reasons = excluded.reasons
         WHERE node_status.signed_at < excluded.signed_at",
    )
    .bind(column(node.0))
    .bind(signed_at)
    .bind(time::now_micros())
    .bind(serde_json::to_string(&report.capacity).map_err(DbError::corrupt)?)
    .bind(serde_json::to_string(&report.reasons).map_err(DbError::corrupt)?)
    .execute(tx)
    .await?;
    Ok(written > 0)
}
