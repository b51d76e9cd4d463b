//! Who may use which farm, coordinators, and which nodes their farm's owner has approved of.

use rhizome_database::{On, Tx, query};
use rhizome_model::statement::{Coordinator, Farm, FarmAccess, Grant, GrantId, Node};
use rhizome_model::{AccountId, Bytes, Capacity, Cpu, FarmId, KeyId, NodeId};

use super::accounts::key_of;
use super::{Db, DbError, column, id_of, next_id};
use crate::time;

#[derive(sqlx::FromRow)]
struct GrantRow {
    id: i64,
    account: i64,
    node: Option<i64>,
    cpu: i64,
    memory: i64,
    disk: i64,
    until: Option<i64>,
}

impl From<GrantRow> for Grant {
    fn from(row: GrantRow) -> Self {
        Self {
            id: id_of(row.id),
            account: AccountId(id_of(row.account)),
            node: row.node.map(|n| NodeId(id_of(n))),
            capacity: capacity_of(row.cpu, row.memory, row.disk),
            until: row.until,
        }
    }
}

/// From columns: thousandths of a processor, bytes, bytes.
pub fn capacity_of(cpu: i64, memory: i64, disk: i64) -> Capacity {
    Capacity {
        cpu: Cpu::from_millis(u32::try_from(cpu).unwrap_or(u32::MAX)),
        memory: Bytes(id_of(memory)),
        disk: Bytes(id_of(disk)),
    }
}

#[derive(sqlx::FromRow)]
struct CoordinatorRow {
    key: Vec<u8>,
    account: i64,
    url: String,
    withdrawn: bool,
}

impl TryFrom<CoordinatorRow> for Coordinator {
    type Error = DbError;

    fn try_from(row: CoordinatorRow) -> Result<Self, DbError> {
        Ok(Self {
            key: key_of(row.key)?,
            account: AccountId(id_of(row.account)),
            url: row.url,
            withdrawn: row.withdrawn,
        })
    }
}

impl Db {
    /// A farm as its nodes need to know it. Grants whose time is over are left out.
    pub async fn farm_access(&self, id: FarmId, now: i64) -> Result<Option<Farm>, DbError> {
        let farm: Option<(i64, bool)> = query("SELECT account, closed FROM farms WHERE id = $1")
            .bind(column(id.0))
            .fetch_optional(&self.database)
            .await?;
        let Some((owner, closed)) = farm else { return Ok(None) };
        let coordinators: Vec<(Vec<u8>,)> =
            query("SELECT coordinator FROM farm_coordinators WHERE farm = $1 ORDER BY coordinator")
                .bind(column(id.0))
                .fetch_all(&self.database)
                .await?;
        let grants: Vec<GrantRow> = query(
            "SELECT id, account, node, cpu, memory, disk, until FROM grants
             WHERE farm = $1 AND ended_at IS NULL AND (until IS NULL OR until > $2) ORDER BY id",
        )
        .bind(column(id.0))
        .bind(now)
        .fetch_all(&self.database)
        .await?;
        Ok(Some(Farm {
            id,
            owner: AccountId(id_of(owner)),
            access: if closed { FarmAccess::Closed } else { FarmAccess::Open },
            coordinators: coordinators
                .into_iter()
                .map(|(key,)| key_of(key))
                .collect::<Result<_, _>>()?,
            grants: grants.into_iter().map(Into::into).collect(),
        }))
    }

    /// A node, and whether it is approved: by the farm's owner, or because it is the owner's own.
    pub async fn node_statement(&self, id: NodeId) -> Result<Option<Node>, DbError> {
        let found: Option<(i64, i64, Vec<u8>, bool)> = query(
            "SELECT n.farm, n.account, a.public_key, (n.approved OR f.account = n.account)
             FROM nodes n JOIN accounts a ON a.id = n.account JOIN farms f ON f.id = n.farm
             WHERE n.id = $1",
        )
        .bind(column(id.0))
        .fetch_optional(&self.database)
        .await?;
        let node = |(farm, account, key, approved)| {
            Ok(Node {
                id,
                farm: FarmId(id_of(farm)),
                account: AccountId(id_of(account)),
                key: key_of(key)?,
                approved,
            })
        };
        found.map(node).transpose()
    }

    pub async fn coordinator(&self, key: &KeyId) -> Result<Option<Coordinator>, DbError> {
        coordinator(&self.database, key).await
    }

    pub async fn coordinators(&self) -> Result<Vec<Coordinator>, DbError> {
        let rows: Vec<CoordinatorRow> = query(
            "SELECT key, account, url, withdrawn FROM coordinators
             WHERE NOT withdrawn ORDER BY created_at, key LIMIT 1000",
        )
        .fetch_all(&self.database)
        .await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

pub async fn coordinator<'a>(
    on: impl Into<On<'a>>,
    key: &KeyId,
) -> Result<Option<Coordinator>, DbError> {
    let row: Option<CoordinatorRow> =
        query("SELECT key, account, url, withdrawn FROM coordinators WHERE key = $1")
            .bind(&key.0[..])
            .fetch_optional(on)
            .await?;
    row.map(TryInto::try_into).transpose()
}

pub async fn owner_of(tx: &mut Tx, farm: FarmId) -> Result<Option<AccountId>, DbError> {
    let found: Option<(i64,)> = query("SELECT account FROM farms WHERE id = $1")
        .bind(column(farm.0))
        .fetch_optional(tx)
        .await?;
    Ok(found.map(|(id,)| AccountId(id_of(id))))
}

/// The farm and the account of a node.
pub async fn place_of(tx: &mut Tx, node: NodeId) -> Result<Option<(FarmId, AccountId)>, DbError> {
    let found: Option<(i64, i64)> = query("SELECT farm, account FROM nodes WHERE id = $1")
        .bind(column(node.0))
        .fetch_optional(tx)
        .await?;
    Ok(found.map(|(farm, account)| (FarmId(id_of(farm)), AccountId(id_of(account)))))
}

pub async fn set_access(tx: &mut Tx, farm: FarmId, access: FarmAccess) -> Result<(), DbError> {
    query("UPDATE farms SET closed = $2, updated_at = $3 WHERE id = $1")
        .bind(column(farm.0))
        .bind(access == FarmAccess::Closed)
        .bind(time::now_micros())
        .execute(tx)
        .await?;
    Ok(())
}

pub async fn set_approved(tx: &mut Tx, node: NodeId, approved: bool) -> Result<(), DbError> {
    query("UPDATE nodes SET approved = $2, updated_at = $3 WHERE id = $1")
        .bind(column(node.0))
        .bind(approved)
        .bind(time::now_micros())
        .execute(tx)
        .await?;
    Ok(())
}

/// Grants of a farm that are in force.
pub async fn count_grants(tx: &mut Tx, farm: FarmId, now: i64) -> Result<u64, DbError> {
    let (count,): (i64,) = query(
        "SELECT COUNT(*) FROM grants
         WHERE farm = $1 AND ended_at IS NULL AND (until IS NULL OR until > $2)",
    )
    .bind(column(farm.0))
    .bind(now)
    .fetch_one(tx)
    .await?;
    Ok(id_of(count))
}

/// What a farm has granted an account, as far as it is in force.
pub async fn grants_of(
    tx: &mut Tx,
    farm: FarmId,
    account: AccountId,
    now: i64,
) -> Result<Vec<Grant>, DbError> {
    let rows: Vec<GrantRow> = query(
        "SELECT id, account, node, cpu, memory, disk, until FROM grants
         WHERE farm = $1 AND account = $2 AND ended_at IS NULL AND (until IS NULL OR until > $3)
         ORDER BY id",
    )
    .bind(column(farm.0))
    .bind(column(account.0))
    .bind(now)
    .fetch_all(tx)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// [`DbError::Dangling`] when there is no such account.
pub async fn add_grant(
    tx: &mut Tx,
    farm: FarmId,
    grant: Grant,
    now: i64,
) -> Result<Grant, DbError> {
    let id = next_id(tx, "grant").await?;
    let capacity = grant.capacity;
    query(
        "INSERT INTO grants (id, farm, account, node, cpu, memory, disk, until, created_at, ended_at)
         VALUES ($1, $2, $3, CAST($4 AS BIGINT), $5, $6, $7, CAST($8 AS BIGINT), $9, NULL)",
    )
    .bind(id)
    .bind(column(farm.0))
    .bind(column(grant.account.0))
    .bind(grant.node.map(|n| column(n.0)))
    .bind(i64::from(capacity.cpu.millis()))
    .bind(column(capacity.memory.0))
    .bind(column(capacity.disk.0))
    .bind(grant.until)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(Grant { id: id_of(id), ..grant })
}

/// Whether there was such a grant in force.
pub async fn end_grant(
    tx: &mut Tx,
    farm: FarmId,
    grant: GrantId,
    now: i64,
) -> Result<bool, DbError> {
    let ended =
        query("UPDATE grants SET ended_at = $3 WHERE farm = $1 AND id = $2 AND ended_at IS NULL")
            .bind(column(farm.0))
            .bind(column(grant))
            .bind(now)
            .execute(tx)
            .await?;
    Ok(ended > 0)
}

pub async fn put_coordinator(tx: &mut Tx, coordinator: &Coordinator) -> Result<(), DbError> {
    query(
        "INSERT INTO coordinators (key, account, url, withdrawn, created_at)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (key) DO UPDATE SET url = excluded.url, withdrawn = excluded.withdrawn",
    )
    .bind(&coordinator.key.0[..])
    .bind(column(coordinator.account.0))
    .bind(&coordinator.url)
    .bind(coordinator.withdrawn)
    .bind(time::now_micros())
    .execute(tx)
    .await?;
    Ok(())
}

/// Takes a coordinator out of every farm that named it; these.
pub async fn forget_coordinator(tx: &mut Tx, key: &KeyId) -> Result<Vec<FarmId>, DbError> {
    let farms: Vec<(i64,)> =
        query("DELETE FROM farm_coordinators WHERE coordinator = $1 RETURNING farm")
            .bind(&key.0[..])
            .fetch_all(tx)
            .await?;
    Ok(farms.into_iter().map(|(id,)| FarmId(id_of(id))).collect())
}

pub async fn count_trusted(tx: &mut Tx, farm: FarmId) -> Result<u64, DbError> {
    let (count,): (i64,) = query("SELECT COUNT(*) FROM farm_coordinators WHERE farm = $1")
        .bind(column(farm.0))
        .fetch_one(tx)
        .await?;
    Ok(id_of(count))
}

pub async fn trust(tx: &mut Tx, farm: FarmId, key: &KeyId) -> Result<(), DbError> {
    query(
        "INSERT INTO farm_coordinators (farm, coordinator) VALUES ($1, $2)
         ON CONFLICT (farm, coordinator) DO NOTHING",
    )
    .bind(column(farm.0))
    .bind(&key.0[..])
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether it was trusted.
pub async fn distrust(tx: &mut Tx, farm: FarmId, key: &KeyId) -> Result<bool, DbError> {
    let gone = query("DELETE FROM farm_coordinators WHERE farm = $1 AND coordinator = $2")
        .bind(column(farm.0))
        .bind(&key.0[..])
        .execute(tx)
        .await?;
    Ok(gone > 0)
}
