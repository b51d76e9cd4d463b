//! Reports of uptime, many in one commit; and what they say about a window of time.

use std::collections::{BTreeMap, BTreeSet};

use rhizome_database::{FromRow, Tx, Value, query};
use rhizome_model::uptime::BootId;
use rhizome_model::{AccountId, KeyId, NodeId};

use super::accounts::key_of;
use super::{Db, DbError, column, id_of, rows};
use crate::uptime::history::{Boot, History, RETENTION_SECS, Report, Span, Verdict};

/// What is kept of a node's history, the newest first: bounds what a node that invents restarts can
/// make us keep.
const MAX_HISTORY: i64 = 1000;

/// Reports of one node, as one request brought them.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub node: NodeId,
    /// Whose request it is, and the key that its signature was verified with.
    pub by: AccountId,
    pub key: KeyId,
    pub reports: Vec<Report>,
    /// Our clock, in Unix seconds.
    pub now: i64,
    /// When the node counts as seen, in microseconds.
    pub seen: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    NoSuchNode,
    NotItsNode,
    /// The key is no longer the account's: verify with the one that it has now.
    KeyChanged,
    Taken {
        /// One for each report.
        verdicts: Vec<Verdict>,
        /// The highest sequence of the last boot.
        highest: u64,
        restarted: bool,
    },
}

#[derive(FromRow)]
struct KnownRow {
    id: i64,
    account: i64,
    public_key: Vec<u8>,
    revoked: bool,
    last_seen: i64,
    up_from: Option<i64>,
    up_until: Option<i64>,
    boot: Option<String>,
    booted_at: Option<i64>,
    sequence: i64,
}

/// A node of this batch.
struct Known {
    account: AccountId,
    /// None once all keys of the account are revoked.
    key: Option<KeyId>,
    last_seen: i64,
    history: History,
    /// What the tables hold beside the last span; only as far as it was read.
    read: Option<Earlier>,
    dirty: bool,
}

#[derive(Clone, Default)]
struct Earlier {
    spans: Vec<Span>,
    boots: Vec<Boot>,
}

impl Db {
    /// The answer to a delivery, after it was committed.
    pub async fn report(&self, delivery: Delivery) -> Result<Delivered, DbError> {
        self.reports.submit(delivery).await
    }
}

/// Takes the reports of many nodes in one commit.
pub(super) async fn take(
    tx: &mut Tx,
    deliveries: Vec<Delivery>,
) -> Result<Vec<Delivered>, DbError> {
    let mut nodes = known(tx, &deliveries).await?;
    let mut answers = Vec::with_capacity(deliveries.len());
    for delivery in &deliveries {
        let answer = match nodes.get_mut(&delivery.node) {
            None => Delivered::NoSuchNode,
            Some(node) if node.account != delivery.by => Delivered::NotItsNode,
            Some(node) if node.key != Some(delivery.key) => Delivered::KeyChanged,
            Some(node) => deliver(tx, node, delivery).await?,
        };
        answers.push(answer);
    }
    nodes.retain(|_, node| node.dirty);
    store_presence(tx, &nodes).await?;
    for (id, node) in &nodes {
        store_history(tx, *id, node).await?;
    }
    Ok(answers)
}

async fn deliver(tx: &mut Tx, node: &mut Known, delivery: &Delivery) -> Result<Delivered, DbError> {
    let mut verdicts = Vec::with_capacity(delivery.reports.len());
    let mut restarted = false;
    for report in &delivery.reports {
        if node.read.is_none() && !node.history.continues(report) {
            let earlier = earlier(tx, delivery.node).await?;
            // What this batch has found so far is the newer part.
            node.history.spans.splice(0..0, earlier.spans.iter().copied());
            node.history.boots.splice(0..0, earlier.boots.iter().cloned());
            node.read = Some(earlier);
        }
        let boot_before = node.history.now.as_ref().map(|(_, boot)| boot.started);
        let told = node.history.events.len();
        verdicts.push(node.history.take(report, delivery.now));
        let boot_now = node.history.now.as_ref().map(|(_, boot)| boot.started);
        restarted |= boot_before != boot_now && node.history.events.len() > told;
    }
    node.last_seen = node.last_seen.max(delivery.seen);
    node.dirty = true;
    let highest = node.history.now.as_ref().map_or(0, |(_, boot)| id_of(boot.sequence));
    Ok(Delivered::Taken { verdicts, highest, restarted })
}

async fn known(tx: &mut Tx, deliveries: &[Delivery]) -> Result<BTreeMap<NodeId, Known>, DbError> {
    let ids: BTreeSet<_> = deliveries.iter().map(|d| column(d.node.0)).collect();
    let found: Vec<KnownRow> = rows::fetch(
        tx,
        "SELECT n.id, n.account, a.public_key, a.revoked, p.last_seen, p.up_from, p.up_until, p.boot,
                p.booted_at, p.sequence
         FROM nodes n JOIN accounts a ON a.id = n.account JOIN presence p ON p.node = n.id
         WHERE n.id IN {}",
        ids,
    )
    .await?;
    found.into_iter().map(|row| Ok((NodeId(id_of(row.id)), row.try_into()?))).collect()
}

impl TryFrom<KnownRow> for Known {
    type Error = DbError;

    fn try_from(row: KnownRow) -> Result<Self, DbError> {
        let now = match (row.up_from, row.up_until, row.booted_at) {
            (Some(from), Some(until), Some(started)) => {
                let boot = Boot { id: boot_id(row.boot)?, started, sequence: row.sequence };
                Some((Span { from, until }, boot))
            }
            _ => None,
        };
        Ok(Self {
            account: AccountId(id_of(row.account)),
            key: (!row.revoked).then_some(key_of(row.public_key)?),
            last_seen: row.last_seen,
            // Nothing is earlier than the first report.
            read: now.is_none().then(Earlier::default),
            history: History { now, ..History::default() },
            dirty: false,
        })
    }
}

fn boot_id(text: Option<String>) -> Result<Option<BootId>, DbError> {
    text.map(|text| text.parse().map_err(DbError::corrupt)).transpose()
}

async fn earlier(tx: &mut Tx, node: NodeId) -> Result<Earlier, DbError> {
    let spans: Vec<(i64, i64)> =
        query("SELECT up_from, up_until FROM spans WHERE node = $1 ORDER BY up_from")
            .bind(column(node.0))
            .fetch_all(&mut *tx)
            .await?;
    let boots: Vec<(String, i64, i64)> =
        query("SELECT boot, booted_at, sequence FROM boots WHERE node = $1 ORDER BY booted_at")
            .bind(column(node.0))
            .fetch_all(&mut *tx)
            .await?;
    let boots = boots
        .into_iter()
        .map(|(id, started, sequence)| Ok(Boot { id: boot_id(Some(id))?, started, sequence }));
    Ok(Earlier {
        spans: spans.into_iter().map(|(from, until)| Span { from, until }).collect(),
        boots: boots.collect::<Result<_, DbError>>()?,
    })
}

async fn store_presence(tx: &mut Tx, nodes: &BTreeMap<NodeId, Known>) -> Result<(), DbError> {
    let values = nodes.iter().filter_map(|(id, node)| {
        let (span, boot) = node.history.now.as_ref()?;
        Some(vec![
            Value::from(column(id.0)),
            node.last_seen.into(),
            span.from.into(),
            span.until.into(),
            boot.id.as_ref().map(BootId::as_str).into(),
            boot.started.into(),
            boot.sequence.into(),
        ])
    });
    rows::insert(
        tx,
        "presence (node, last_seen, up_from, up_until, boot, booted_at, sequence)",
        "ON CONFLICT (node) DO UPDATE SET last_seen = excluded.last_seen,
            up_from = excluded.up_from, up_until = excluded.up_until, boot = excluded.boot,
            booted_at = excluded.booted_at, sequence = excluded.sequence",
        values.collect(),
    )
    .await
}

/// What came to a node's history in this batch, or left it. For most reports that is nothing.
async fn store_history(tx: &mut Tx, id: NodeId, node: &Known) -> Result<(), DbError> {
    let id = column(id.0);
    let before = node.read.clone().unwrap_or_default();
    let history = &node.history;
    for span in before.spans.iter().filter(|span| !history.spans.contains(span)) {
        query("DELETE FROM spans WHERE node = $1 AND up_from = $2")
            .bind(id)
            .bind(span.from)
            .execute(&mut *tx)
            .await?;
    }
    let spans: Vec<_> = history
        .spans
        .iter()
        .filter(|span| !before.spans.contains(span))
        .map(|span| vec![id.into(), span.from.into(), span.until.into()])
        .collect();
    let boots: Vec<_> = history
        .boots
        .iter()
        .filter(|boot| !before.boots.contains(boot))
        .filter_map(|boot| {
            let boot_id = boot.id.as_ref()?.as_str();
            Some(vec![id.into(), boot_id.into(), boot.started.into(), boot.sequence.into()])
        })
        .collect();
    let events: Vec<_> = history
        .events
        .iter()
        .map(|e| {
            let (kind, detail) = (e.kind.word(), e.detail.as_str());
            vec![id.into(), e.at.into(), kind.into(), detail.into()]
        })
        .collect();
    if spans.is_empty() && boots.is_empty() && events.is_empty() {
        return Ok(());
    }
    rows::insert(tx, "spans (node, up_from, up_until)", "", spans).await?;
    let tail = "ON CONFLICT (node, boot) DO UPDATE SET sequence = excluded.sequence";
    rows::insert(tx, "boots (node, boot, booted_at, sequence)", tail, boots).await?;
    for event in events {
        let tail = "ON CONFLICT (node, at, kind) DO NOTHING";
        rows::insert(tx, "uptime_events (node, at, kind, detail)", tail, vec![event]).await?;
    }
    forget(tx, id, crate::time::now_secs() - RETENTION_SECS).await
}

/// Drops what is too old of a node, and what is too much.
async fn forget(tx: &mut Tx, id: i64, before: i64) -> Result<(), DbError> {
    for statement in [
        "DELETE FROM spans WHERE node = $1 AND (up_until < $2 OR up_from < COALESCE(
            (SELECT up_from FROM spans WHERE node = $1 ORDER BY up_from DESC LIMIT 1 OFFSET $3), 0))",
        "DELETE FROM boots WHERE node = $1 AND (booted_at < $2 OR booted_at < COALESCE(
            (SELECT booted_at FROM boots WHERE node = $1 ORDER BY booted_at DESC LIMIT 1 OFFSET $3), 0))",
        "DELETE FROM uptime_events WHERE node = $1 AND (at < $2 OR at < COALESCE(
            (SELECT at FROM uptime_events WHERE node = $1 ORDER BY at DESC LIMIT 1 OFFSET $3), 0))",
    ] {
        query(statement).bind(id).bind(before).bind(MAX_HISTORY - 1).execute(&mut *tx).await?;
    }
    Ok(())
}
