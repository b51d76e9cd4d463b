//! Nodes and their uptime.

use rhizome_database::{FromRow, On, Tx, query};
use rhizome_model::registrar::{Node, NodeRegistration, Resources};
use rhizome_model::statement::Subject;
use rhizome_model::{AccountId, FarmId, NodeId};

use super::accounts::key_of;
use super::conditions::Conditions;
use super::{Db, DbError, Page, access, audit, column, id_of, last_id, next_id, revisions, rows};
use crate::time;

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
    last_seen: i64,
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
            last_seen: Some(row.last_seen).filter(|seen| *seen > 0).map(time::rfc3339),
            online: row.last_seen > time::online_since(),
            created_at: time::rfc3339(row.created_at),
            updated_at: time::rfc3339(row.updated_at),
            approved: row.approved,
            supervisor_url: row.supervisor_url,
            public_key: key_of(row.public_key)?,
        })
    }
}

/// Which nodes; what is not named does not matter.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NodeFilter {
    pub id: Option<u64>,
    pub farm: Option<u64>,
    pub account: Option<u64>,
    /// Seen after this time, in microseconds.
    pub seen_after: Option<i64>,
    /// Never seen, or at this time or before.
    pub not_seen_after: Option<i64>,
}

/// [`DbError::Duplicate`] when the account has a node, [`DbError::Dangling`] when there is no such
/// farm.
pub type NodeMade = Result<NodeId, DbError>;

/// Registers nodes in one commit. Who is refused changes nothing.
pub(super) async fn create(
    tx: &mut Tx,
    nodes: Vec<NodeRegistration>,
) -> Result<Vec<NodeMade>, DbError> {
    let mut made = Vec::with_capacity(nodes.len());
    let mut notes = Vec::with_capacity(nodes.len());
    for node in nodes {
        let (taken, farm): (bool, bool) = query(
            "SELECT EXISTS (SELECT 1 FROM nodes WHERE account = $1),
                    EXISTS (SELECT 1 FROM farms WHERE id = $2)",
        )
        .bind(column(node.twin_id.0))
        .bind(column(node.farm_id.0))
        .fetch_one(&mut *tx)
        .await?;
        made.push(match (taken, farm) {
            (true, _) => Err(DbError::Duplicate),
            (false, false) => Err(DbError::Dangling),
            (false, true) => {
                let id = insert(tx, &node).await?;
                notes.push(changed("node.create", node.twin_id, id, &node)?);
                Ok(id)
            }
        });
    }
    audit::note(tx, notes).await?;
    Ok(made)
}

/// On the routes of v4 only its own account registers and changes a node.
fn changed(
    action: &'static str,
    account: AccountId,
    node: NodeId,
    registration: &NodeRegistration,
) -> Result<audit::Change, DbError> {
    let detail = serde_json::to_string(registration).map_err(DbError::corrupt)?;
    let (account, subject) = (Some(account), Subject::Node(node));
    Ok(audit::Change { account, key: None, action, subject, detail })
}

async fn insert(tx: &mut Tx, node: &NodeRegistration) -> Result<NodeId, DbError> {
    let id = next_id(tx, "node").await?;
    query(
        "INSERT INTO nodes (id, farm, account, location, hru, sru, cru, mru, interfaces,
                            secure_boot, virtualized, serial_number, supervisor_url,
                            approved, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $15)",
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
    .execute(&mut *tx)
    .await?;
    query("INSERT INTO presence (node, last_seen, sequence) VALUES ($1, 0, 0)")
        .bind(id)
        .execute(tx)
        .await?;
    Ok(NodeId(id_of(id)))
}

impl Db {
    pub async fn create_node(&self, node: NodeRegistration) -> NodeMade {
        self.nodes.submit(node).await?
    }

    /// Replaces what a node says about itself. A `supervisor_url` that is not given stays: v4
    /// clients do not know it. Approval is for one farm.
    pub async fn update_node(&self, id: NodeId, node: &NodeRegistration) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        let before = access::place_of(&mut tx, id).await?;
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
        if let Some((farm, account)) = before {
            audit::note(&mut tx, [changed("node.update", account, id, node)?]).await?;
            if farm != node.farm_id {
                revisions::touch(&mut tx, [Subject::Node(id)]).await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    pub async fn node(&self, id: NodeId) -> Result<Option<Node>, DbError> {
        let filter = NodeFilter { id: Some(id.0), ..NodeFilter::default() };
        let first = Slice { descending: false, limit: 1, offset: 0 };
        Ok(slice_of(&self.database, &filter, first).await?.pop())
    }

    /// A page of the nodes of a filter, and how many there are in all.
    pub async fn nodes(
        &self,
        filter: &NodeFilter,
        page: Page,
    ) -> Result<(Vec<Node>, u64), DbError> {
        // Both of one moment.
        let mut tx = self.database.snapshot().await?;
        let found = find(&mut tx, filter).await?;
        let total = found.count();
        let nodes = match (slice(page, column(total)), found) {
            (None, _) => Vec::new(),
            (Some(slice), Found::Ids(ids)) => with_ids(&mut tx, slice.of(ids)).await?,
            (Some(slice), Found::Count(_)) => slice_of(&mut tx, filter, slice).await?,
        };
        tx.commit().await?;
        Ok((nodes, total))
    }

    pub async fn count_nodes(&self) -> Result<u64, DbError> {
        last_id(&self.database, "node").await
    }
}

/// The nodes of a filter.
enum Found {
    /// In ascending order.
    Ids(Vec<i64>),
    Count(u64),
}

impl Found {
    fn count(&self) -> u64 {
        match self {
            Self::Ids(ids) => ids.len() as u64,
            Self::Count(count) => *count,
        }
    }
}

async fn find(tx: &mut Tx, filter: &NodeFilter) -> Result<Found, DbError> {
    match *filter {
        // Ids have no gaps, and no node is ever removed.
        NodeFilter {
            id: None,
            farm: None,
            account: None,
            seen_after: None,
            not_seen_after: None,
        } => last_id(tx, "node").await.map(Found::Count),
        // Those that are away are fewer to count.
        NodeFilter { id: None, farm: None, account: None, seen_after, not_seen_after: None } => {
            let away = NodeFilter { not_seen_after: seen_after, ..NodeFilter::default() };
            let all = last_id(&mut *tx, "node").await?;
            let away = count_rows(tx, &away).await?;
            Ok(Found::Count(all.saturating_sub(away)))
        }
        NodeFilter { id: None, farm: None, account: None, seen_after: None, .. } => {
            ids_of(tx, filter).await.map(Found::Ids)
        }
        _ => count_rows(tx, filter).await.map(Found::Count),
    }
}

/// All ids of a filter in one value: a row for each would take longer than finding them.
async fn ids_of(tx: &mut Tx, filter: &NodeFilter) -> Result<Vec<i64>, DbError> {
    let filter = filter.conditions();
    let sql = format!("SELECT string_agg(CAST({} AS TEXT), ',') FROM {}", filter.id, filter.from());
    let (ids,): (Option<String>,) = filter.bound(sql).fetch_one(tx).await?;
    let ids = ids.unwrap_or_default();
    let ids = ids.split(',').filter(|id| !id.is_empty()).map(str::parse);
    let mut ids: Vec<i64> = ids.collect::<Result<_, _>>().map_err(DbError::corrupt)?;
    ids.sort_unstable();
    Ok(ids)
}

async fn count_rows(tx: &mut Tx, filter: &NodeFilter) -> Result<u64, DbError> {
    let filter = filter.conditions();
    let sql = format!("SELECT COUNT(*) FROM {}", filter.from());
    let (count,) = filter.bound(sql).fetch_one::<(i64,)>(tx).await?;
    Ok(id_of(count))
}

/// Rows of a list, from whichever of its ends is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slice {
    descending: bool,
    limit: i64,
    offset: i64,
}

impl Slice {
    /// Its part of rows in ascending order.
    fn of(self, ids: Vec<i64>) -> Vec<i64> {
        let (offset, limit) = (id_of(self.offset) as usize, id_of(self.limit) as usize);
        let before =
            if self.descending { ids.len().saturating_sub(offset + limit) } else { offset };
        ids.into_iter().skip(before).take(limit).collect()
    }
}

fn slice(page: Page, total: i64) -> Option<Slice> {
    let limit = total.saturating_sub(page.offset).min(page.limit);
    if limit <= 0 {
        return None;
    }
    let behind = total - page.offset - limit;
    let descending = behind < page.offset;
    Some(Slice { descending, limit, offset: if descending { behind } else { page.offset } })
}

/// What is shown of nodes.
const SHOWN: &str = "SELECT n.id, n.farm, n.account, n.location, n.hru, n.sru, n.cru, n.mru,
       n.interfaces, n.secure_boot, n.virtualized, n.serial_number, n.supervisor_url, n.approved,
       p.last_seen, n.created_at, n.updated_at, a.public_key
FROM nodes n JOIN presence p ON p.node = n.id JOIN accounts a ON a.id = n.account";

/// The nodes of these ids, which are in ascending order.
async fn with_ids(tx: &mut Tx, ids: Vec<i64>) -> Result<Vec<Node>, DbError> {
    let sql = format!("{SHOWN} WHERE n.id IN {{}} ORDER BY n.id");
    let rows: Vec<NodeRow> = rows::fetch(tx, &sql, ids).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

async fn slice_of(
    on: impl Into<On<'_>>,
    filter: &NodeFilter,
    slice: Slice,
) -> Result<Vec<Node>, DbError> {
    // Which ones first, by narrow rows and indexes; then what the page shows of them.
    let filter = filter.conditions();
    let (limit, offset) = (filter.next(), filter.next() + 1);
    let sql = format!(
        "{SHOWN}
         JOIN (SELECT {id} AS id FROM {from} ORDER BY {id} {order}
               LIMIT ${limit} OFFSET ${offset}) page ON n.id = page.id
         ORDER BY n.id",
        id = filter.id,
        from = filter.from(),
        order = if slice.descending { "DESC" } else { "ASC" },
    );
    let rows: Vec<NodeRow> =
        filter.bound(sql).bind(slice.limit).bind(slice.offset).fetch_all(on).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

impl NodeFilter {
    /// Which way to the rows is the shortest is said here, as statistics of when nodes were seen are
    /// out of date as soon as a fleet reports: by farm or account if there is one; nodes that are up,
    /// which are most, in the order of their ids until the page is full; nodes that are away by reading
    /// all rows as they lie. A `+` keeps a store from using statistics.
    fn conditions(&self) -> Conditions {
        let of_nodes = self.farm.is_some() || self.account.is_some();
        let (id, tables, seen) = match (of_nodes, self.seen_after, self.not_seen_after) {
            (false, Some(_), None) => ("p.node", "presence p", "+p.last_seen"),
            (false, _, Some(_)) => ("p.node", "presence p", "p.last_seen"),
            _ => ("n.id", "nodes n", "(SELECT last_seen FROM presence WHERE node = n.id)"),
        };
        let mut conditions = Conditions::new(id, tables);
        conditions.add_some(id, "=", self.id.map(column));
        conditions.add_some("n.farm", "=", self.farm.map(column));
        conditions.add_some("n.account", "=", self.account.map(column));
        conditions.add_some(seen, ">", self.seen_after);
        conditions.add_some(seen, "<=", self.not_seen_after);
        conditions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_from_the_nearer_end() {
        for total in 0..12 {
            for limit in 1..5 {
                for offset in 0..14 {
                    let all: Vec<i64> = (0..total).collect();
                    let from = usize::try_from(offset.min(total)).unwrap();
                    let wanted: Vec<_> = all[from..].iter().take(limit as usize).copied().collect();
                    let found = slice(Page { limit, offset }, total).map(|slice| {
                        assert!(slice.offset * 2 <= total, "{slice:?} of {total}");
                        let mut ordered = all.clone();
                        if slice.descending {
                            ordered.reverse();
                        }
                        let rows = ordered.into_iter().skip(slice.offset as usize);
                        let mut rows: Vec<_> = rows.take(slice.limit as usize).collect();
                        rows.sort_unstable();
                        assert_eq!(slice.of(all.clone()), rows);
                        rows
                    });
                    assert_eq!(found.unwrap_or_default(), wanted, "{limit} {offset} of {total}");
                }
            }
        }
    }
}
