//! Nodes and their uptime.

use rhizome_database::{FromRow, query};
use rhizome_model::registrar::{Node, NodeRegistration, Resources};
use rhizome_model::{AccountId, FarmId, NodeId};

use super::accounts::key_of;
use super::{Db, DbError, Page, column, id_of, next_id};
use crate::time;

/// Clocks are corrected by some seconds; a later start than this is a restart.
const RESTART_SLACK_SECS: i64 = 120;

#[derive(FromRow)]
struct NodeRow {
    id: i64,
    farm: i64,
    account: i64,
    location: String,
    hru: i64,
    sru: i64,
    cru: i64,
    mru: i64,
    interfaces: String,
    secure_boot: bool,
    virtualized: bool,
    serial_number: String,
    supervisor_url: Option<String>,
    approved: bool,
    last_seen: Option<i64>,
    created_at: i64,
    updated_at: i64,
    public_key: Vec<u8>,
}

impl TryFrom<NodeRow> for Node {
    type Error = DbError;
    fn try_from(row: NodeRow) -> Result<Self, DbError> {
        Ok(Self {
            node_id: NodeId(id_of(row.id)),
            farm_id: FarmId(id_of(row.farm)),
            twin_id: AccountId(id_of(row.account)),
            location: serde_json::from_str(&row.location).map_err(DbError::corrupt)?,
            resources: Resources {
                hru: id_of(row.hru),
                sru: id_of(row.sru),
                cru: id_of(row.cru),
                mru: id_of(row.mru),
            },
            interfaces: serde_json::from_str(&row.interfaces).map_err(DbError::corrupt)?,
            secure_boot: row.secure_boot,
            virtualized: row.virtualized,
            serial_number: row.serial_number,
            last_seen: row.last_seen.map(time::rfc3339),
            online: row.last_seen.is_some_and(|seen| seen > time::online_since()),
            created_at: time::rfc3339(row.created_at),
            updated_at: time::rfc3339(row.updated_at),
            approved: row.approved,
            supervisor_url: row.supervisor_url,
            public_key: key_of(row.public_key)?,
        })
    }
}

/// Which nodes; what is not named does not matter.
#[derive(Debug, Default)]
pub struct NodeFilter {
    pub id: Option<u64>,
    pub farm: Option<u64>,
    pub account: Option<u64>,
    /// Seen after this time, in microseconds.
    pub seen_after: Option<i64>,
    /// Never seen, or at this time or before.
    pub not_seen_after: Option<i64>,
}

impl Db {
    /// [`DbError::Duplicate`] when the account has a node, [`DbError::Dangling`] when there is no
    /// such farm.
    pub async fn create_node(&self, node: &NodeRegistration) -> Result<NodeId, DbError> {
        let mut tx = self.begin().await?;
        let id = next_id(&mut tx, "node").await?;
        query(
            "INSERT INTO nodes (id, farm, account, location, hru, sru, cru, mru, interfaces,
                                secure_boot, virtualized, serial_number, supervisor_url,
                                approved, last_seen, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, NULL, $15, $15)",
        )
        .bind(id)
        .bind(column(node.farm_id.0))
        .bind(column(node.twin_id.0))
        .bind(serde_json::to_string(&node.location).map_err(DbError::corrupt)?)
        .bind(column(node.resources.hru))
        .bind(column(node.resources.sru))
        .bind(column(node.resources.cru))
        .bind(column(node.resources.mru))
        .bind(serde_json::to_string(&node.interfaces).map_err(DbError::corrupt)?)
        .bind(node.secure_boot)
        .bind(node.virtualized)
        .bind(&node.serial_number)
        .bind(node.supervisor_url.as_deref())
        .bind(false)
        .bind(time::now_micros())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(NodeId(id_of(id)))
    }

    /// Replaces what a node says about itself. A `supervisor_url` that is not given stays: v4
    /// clients do not know it. Approval is for one farm.
    pub async fn update_node(&self, id: NodeId, node: &NodeRegistration) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        query(
            "UPDATE nodes SET approved = (approved AND farm = $2), farm = $2, location = $3,
                              hru = $4, sru = $5, cru = $6, mru = $7, interfaces = $8,
                              secure_boot = $9, virtualized = $10, serial_number = $11,
                              supervisor_url = COALESCE($12, supervisor_url), updated_at = $13
             WHERE id = $1",
        )
        .bind(column(id.0))
        .bind(column(node.farm_id.0))
        .bind(serde_json::to_string(&node.location).map_err(DbError::corrupt)?)
        .bind(column(node.resources.hru))
        .bind(column(node.resources.sru))
        .bind(column(node.resources.cru))
        .bind(column(node.resources.mru))
        .bind(serde_json::to_string(&node.interfaces).map_err(DbError::corrupt)?)
        .bind(node.secure_boot)
        .bind(node.virtualized)
        .bind(&node.serial_number)
        .bind(node.supervisor_url.as_deref())
        .bind(time::now_micros())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    pub async fn node(&self, id: NodeId) -> Result<Option<Node>, DbError> {
        let filter = NodeFilter { id: Some(id.0), ..NodeFilter::default() };
        Ok(self.nodes(&filter, Page { limit: 1, offset: 0 }).await?.pop())
    }

    pub async fn nodes(&self, filter: &NodeFilter, page: Page) -> Result<Vec<Node>, DbError> {
        let rows: Vec<NodeRow> = query(
            "SELECT n.id, n.farm, n.account, n.location, n.hru, n.sru, n.cru, n.mru, n.interfaces,
                    n.secure_boot, n.virtualized, n.serial_number, n.supervisor_url, n.approved,
                    n.last_seen, n.created_at, n.updated_at, a.public_key
             FROM nodes n JOIN accounts a ON a.id = n.account
             WHERE (CAST($1 AS BIGINT) IS NULL OR n.id = $1)
               AND (CAST($2 AS BIGINT) IS NULL OR n.farm = $2)
               AND (CAST($3 AS BIGINT) IS NULL OR n.account = $3)
               AND (CAST($4 AS BIGINT) IS NULL OR n.last_seen > $4)
               AND (CAST($5 AS BIGINT) IS NULL OR n.last_seen IS NULL OR n.last_seen <= $5)
             ORDER BY n.id LIMIT $6 OFFSET $7",
        )
        .bind(filter.id.map(column))
        .bind(filter.farm.map(column))
        .bind(filter.account.map(column))
        .bind(filter.seen_after)
        .bind(filter.not_seen_after)
        .bind(page.limit)
        .bind(page.offset)
        .fetch_all(&self.database)
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// Writes a report down and moves `last_seen` forwards, never back. A report that is sent again
    /// is the same report. Whether the node restarted since the last one.
    pub async fn report_uptime(&self, id: NodeId, uptime: i64, at: i64) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let before: Option<(i64, i64)> = query(
            "SELECT uptime, reported_at FROM uptime_reports
             WHERE node = $1 AND reported_at < $2 ORDER BY reported_at DESC LIMIT 1",
        )
        .bind(column(id.0))
        .bind(at)
        .fetch_optional(&mut tx)
        .await?;
        let was_restart = before.is_some_and(|(uptime_then, then)| {
            at.saturating_sub(uptime) > then.saturating_sub(uptime_then) + RESTART_SLACK_SECS
        });
        query(
            "INSERT INTO uptime_reports (node, reported_at, uptime, was_restart)
             VALUES ($1, $2, $3, $4)
             ON CONFLICT (node, reported_at)
             DO UPDATE SET uptime = excluded.uptime, was_restart = excluded.was_restart",
        )
        .bind(column(id.0))
        .bind(at)
        .bind(uptime)
        .bind(was_restart)
        .execute(&mut tx)
        .await?;
        query(
            "UPDATE nodes SET last_seen = $2
             WHERE id = $1 AND (last_seen IS NULL OR last_seen < $2)",
        )
        .bind(column(id.0))
        .bind(time::micros_of_secs(at))
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(was_restart)
    }
}
