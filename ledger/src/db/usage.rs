//! What accounts use of farms and nodes, as the nodes say it.

use rhizome_database::{Tx, query};
use rhizome_model::api::{NodeUsage, UsageView};
use rhizome_model::statement::{FarmAccess, FarmUse};
use rhizome_model::{AccountId, Capacity, FarmId, NodeId};

use super::access::{capacity_of, grants_of};
use super::{Db, DbError, Page, column, id_of};

#[derive(sqlx::FromRow)]
struct UsageRow {
    account: i64,
    node: i64,
    number: i64,
    cpu: i64,
    memory: i64,
    disk: i64,
}

impl UsageRow {
    fn capacity(&self) -> Capacity {
        capacity_of(self.cpu, self.memory, self.disk)
    }
}

/// A node and its present farm.
pub struct Standing {
    pub farm: FarmId,
    pub owner: AccountId,
    pub access: FarmAccess,
    /// The node's own.
    pub account: AccountId,
    pub approved: bool,
}

impl Db {
    /// What accounts reserve of the nodes that count for a farm. `None` when there is no such farm.
    pub async fn usage_of_farm(
        &self,
        farm: FarmId,
        account: Option<AccountId>,
        page: Page,
    ) -> Result<Option<Vec<UsageView>>, DbError> {
        let known: Option<(i64,)> = query("SELECT id FROM farms WHERE id = $1")
            .bind(column(farm.0))
            .fetch_optional(&self.database)
            .await?;
        if known.is_none() {
            return Ok(None);
        }
        let rows: Vec<UsageRow> = query(
            "SELECT u.account, u.node, u.number, u.cpu, u.memory, u.disk
             FROM node_usage u JOIN nodes n ON n.id = u.node JOIN farms f ON f.id = n.farm
             WHERE n.farm = $1 AND (n.approved OR f.account = n.account)
               AND (CAST($2 AS BIGINT) IS NULL OR u.account = $2)
               AND (u.cpu > 0 OR u.memory > 0 OR u.disk > 0)
             ORDER BY u.account, u.node LIMIT $3 OFFSET $4",
        )
        .bind(column(farm.0))
        .bind(account.map(|account| column(account.0)))
        .bind(page.limit)
        .bind(page.offset)
        .fetch_all(&self.database)
        .await?;
        let view = |row: UsageRow| UsageView {
            account: AccountId(id_of(row.account)),
            node: NodeId(id_of(row.node)),
            capacity: row.capacity(),
        };
        Ok(Some(rows.into_iter().map(view).collect()))
    }
}

pub async fn standing(tx: &mut Tx, node: NodeId) -> Result<Option<Standing>, DbError> {
    let found: Option<(i64, i64, bool, i64, bool)> = query(
        "SELECT f.id, f.account, f.closed, n.account, (n.approved OR f.account = n.account)
         FROM nodes n JOIN farms f ON f.id = n.farm WHERE n.id = $1",
    )
    .bind(column(node.0))
    .fetch_optional(tx)
    .await?;
    Ok(found.map(|(farm, owner, closed, account, approved)| Standing {
        farm: FarmId(id_of(farm)),
        owner: AccountId(id_of(owner)),
        access: if closed { FarmAccess::Closed } else { FarmAccess::Open },
        account: AccountId(id_of(account)),
        approved,
    }))
}

/// What a node said last of an account.
pub async fn held(
    tx: &mut Tx,
    node: NodeId,
    account: AccountId,
) -> Result<Option<NodeUsage>, DbError> {
    let row: Option<UsageRow> = query(
        "SELECT account, node, number, cpu, memory, disk FROM node_usage
         WHERE account = $1 AND node = $2",
    )
    .bind(column(account.0))
    .bind(column(node.0))
    .fetch_optional(tx)
    .await?;
    Ok(row.map(|row| NodeUsage {
        account,
        number: id_of(row.number),
        capacity: row.capacity(),
        reserved: false,
    }))
}

/// What an account has of a farm, as the approved nodes of it say, and what `node` says, approved
/// or not.
pub async fn farm_use(
    tx: &mut Tx,
    farm: FarmId,
    node: NodeId,
    account: AccountId,
    now: i64,
) -> Result<FarmUse, DbError> {
    let grants = grants_of(&mut *tx, farm, account, now).await?;
    let rows: Vec<UsageRow> = query(
        "SELECT u.account, u.node, u.number, u.cpu, u.memory, u.disk
         FROM node_usage u JOIN nodes n ON n.id = u.node JOIN farms f ON f.id = n.farm
         WHERE u.account = $1 AND n.farm = $2
           AND (n.approved OR f.account = n.account OR n.id = $3)",
    )
    .bind(column(account.0))
    .bind(column(farm.0))
    .bind(column(node.0))
    .fetch_all(tx)
    .await?;
    let reserved = rows.iter().map(|row| (NodeId(id_of(row.node)), row.capacity()));
    Ok(FarmUse::new(account, &grants, reserved, now))
}

/// [`DbError::Dangling`] when there is no such account.
pub async fn put(tx: &mut Tx, node: NodeId, usage: &NodeUsage) -> Result<(), DbError> {
    query(
        "INSERT INTO node_usage (account, node, number, cpu, memory, disk)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (account, node) DO UPDATE
         SET number = excluded.number, cpu = excluded.cpu, memory = excluded.memory,
             disk = excluded.disk",
    )
    .bind(column(usage.account.0))
    .bind(column(node.0))
    .bind(column(usage.number))
    .bind(i64::from(usage.capacity.cpu.millis()))
    .bind(column(usage.capacity.memory.0))
    .bind(column(usage.capacity.disk.0))
    .execute(tx)
    .await?;
    Ok(())
}
