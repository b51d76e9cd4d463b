//! Mirroring what nodes say: their events and the place up to which we have them move together, so
//! each event is taken exactly once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rhizome_model::{DeploymentId, Event, Failure, NodeId, Phase, What};
use serde_json::Value;
use sqlx::QueryBuilder;
use sqlx::sqlite::SqliteConnection;

use super::task::{row, rows};
use super::{Durability, ROWS, Result, Store, TaskRow, append, append_one, key_of, number};
use crate::rules::moves;

/// What a batch of a node's events changed.
#[derive(Debug, Default)]
pub struct Mirrored {
    /// Deployments whose task on the node settled: their view is worth another look.
    pub settled: BTreeSet<DeploymentId>,
}

impl Store {
    /// Where to go on reading a node's events.
    pub async fn cursor(&self, node: NodeId) -> Result<Option<String>> {
        Ok(sqlx::query_scalar("SELECT place FROM cursors WHERE node = $1")
            .bind(number(node.0))
            .fetch_optional(&self.readers)
            .await?)
    }

    /// The node's stream begins anew.
    pub async fn forget_cursor(&self, node: NodeId) -> Result<()> {
        self.writer.write(Durability::Told, node, |conn, node| Box::pin(forget(conn, *node))).await
    }

    /// Takes a node's events in their order, up to and with `place`. However many they are, they
    /// cost as many statements.
    pub async fn mirror(
        &self,
        node: NodeId,
        events: Vec<Event>,
        place: Option<&str>,
    ) -> Result<Mirrored> {
        let said = (node, events, place.map(str::to_owned));
        let mirroring = self.writer.write(Durability::Told, said, |conn, (node, events, place)| {
            Box::pin(mirror(conn, *node, events, place.as_deref()))
        });
        let (mirrored, news) = mirroring.await?;
        news.iter().for_each(|id| self.waker.wake(id));
        Ok(mirrored)
    }

    /// The node answered a delete that it has nothing of the kind.
    pub async fn gone(&self, held: &TaskRow, event: Event) -> Result<bool> {
        self.apply(held, |held, now| now.envelope == held.envelope, event).await
    }

    /// What a look at the node showed and no event told, if the task has not moved since.
    pub async fn found(&self, held: &TaskRow, event: Event) -> Result<bool> {
        let same = |held: &TaskRow, now: &TaskRow| {
            now.updated_at == held.updated_at && now.phase == held.phase
        };
        self.apply(held, same, event).await
    }

    async fn apply(&self, held: &TaskRow, same: Same, event: Event) -> Result<bool> {
        let id = event.deployment.clone();
        let values = (held.clone(), same, event);
        let applying = self.writer.write(Durability::Told, values, |conn, (held, same, event)| {
            Box::pin(apply(conn, held, *same, event))
        });
        let applied = applying.await?;
        if applied {
            self.waker.wake(&id);
        }
        Ok(applied)
    }
}

/// Whether a task is still as it was.
type Same = fn(&TaskRow, &TaskRow) -> bool;

async fn forget(conn: &mut SqliteConnection, node: NodeId) -> Result<()> {
    sqlx::query("DELETE FROM cursors WHERE node = $1").bind(number(node.0)).execute(conn).await?;
    Ok(())
}

async fn apply(
    conn: &mut SqliteConnection,
    held: &TaskRow,
    same: Same,
    event: &Event,
) -> Result<bool> {
    let Some(task) = row(conn, &held.key).await?.filter(|now| same(held, now)) else {
        return Ok(false);
    };
    let mut task = Moving::from(task);
    if !task.take(event) {
        return Ok(false);
    }
    write(conn, &[task]).await?;
    append_one(conn, event.clone()).await?;
    Ok(true)
}

/// What changed, and which deployments have news.
async fn mirror(
    conn: &mut SqliteConnection,
    node: NodeId,
    events: &[Event],
    place: Option<&str>,
) -> Result<(Mirrored, BTreeSet<DeploymentId>)> {
    let mut mirrored = Mirrored::default();
    let mut news: BTreeMap<DeploymentId, Vec<Event>> = BTreeMap::new();
    let about: BTreeSet<_> = events.iter().map(|e| e.deployment.clone()).collect();
    let mut tasks: HashMap<_, _> = rows(conn, node, &about)
        .await?
        .into_iter()
        .map(|row| (row.key.deployment.clone(), Moving::from(row)))
        .collect();
    for event in events {
        // A node speaks for its own tasks only.
        let Some(task) = tasks.get_mut(&event.deployment) else { continue };
        if !task.take(event) {
            continue;
        }
        if matches!(event.what, What::Phase { phase, .. } if phase.is_settled()) {
            mirrored.settled.insert(event.deployment.clone());
        }
        let event = Event { node: Some(node), ..event.clone() };
        news.entry(event.deployment.clone()).or_default().push(event);
    }
    let moved: Vec<_> = tasks.into_values().filter(|t| t.moved).collect();
    write(conn, &moved).await?;
    append(conn, &news).await?;
    if let Some(place) = place {
        sqlx::query(
            "INSERT INTO cursors (node, place) VALUES ($1, $2)
             ON CONFLICT (node) DO UPDATE SET place = $2",
        )
        .bind(number(node.0))
        .bind(place)
        .execute(conn)
        .await?;
    }
    Ok((mirrored, news.into_keys().collect()))
}

/// A task, and what events say of it.
struct Moving {
    row: TaskRow,
    moved: bool,
    failure: Option<Failure>,
    /// None: those that it had.
    outputs: Option<Value>,
}

impl From<TaskRow> for Moving {
    fn from(row: TaskRow) -> Self {
        Self { row, moved: false, failure: None, outputs: None }
    }
}

impl Moving {
    /// Moves the task if the event is about its phase. Says whether the event is news.
    fn take(&mut self, event: &Event) -> bool {
        let What::Phase { phase, failure, outputs } = &event.what else { return true };
        let task = &mut self.row;
        if event.version != task.version {
            // About a version before: kept in the log, but it never moves a newer task.
            return event.version < task.version;
        }
        if !moves(task.phase, *phase) {
            return false;
        }
        task.phase = *phase;
        match phase {
            Phase::Deleted => (task.holds, task.good) = (false, None),
            Phase::Ready => (task.holds, task.good) = (true, Some(task.envelope.clone())),
            Phase::Accepted
            | Phase::Running
            | Phase::RollbackStuck
            | Phase::Failed
            | Phase::Deleting => task.holds = true,
            Phase::Pending | Phase::Refused => {}
        }
        self.moved = true;
        self.failure.clone_from(failure);
        if let Some(outputs) = outputs.as_ref().filter(|o| o.is_object()) {
            self.outputs = Some(outputs.clone());
        }
        true
    }
}

async fn write(conn: &mut SqliteConnection, tasks: &[Moving]) -> Result<()> {
    let now = rhizome_service::clock::now_ms();
    for some in tasks.chunks(ROWS) {
        let mut rows = Vec::with_capacity(some.len());
        for task in some {
            let failure = task.failure.as_ref().map(serde_json::to_string).transpose()?;
            rows.push((task, failure, task.outputs.as_ref().map(ToString::to_string)));
        }
        let mut query = QueryBuilder::new(
            "WITH v (account, name, node, phase, holds, good, failure, outputs, at) AS (",
        );
        query.push_values(rows, |mut row, (task, failure, outputs)| {
            let TaskRow { key, phase, holds, good, .. } = &task.row;
            let (account, name) = key_of(&key.deployment);
            row.push_bind(account).push_bind(name.to_owned()).push_bind(number(key.node.0));
            row.push_bind(phase.to_string()).push_bind(*holds).push_bind(good.clone());
            row.push_bind(failure).push_bind(outputs).push_bind(now);
        });
        query.push(
            ") UPDATE tasks SET phase = v.phase, holds = v.holds, good = v.good,
                 failure = v.failure, outputs = COALESCE(v.outputs, tasks.outputs),
                 waiting_for = NULL, updated_at = v.at,
                 delivered = CASE WHEN v.phase = 'deleted' THEN TRUE ELSE delivered END
               FROM v
               WHERE tasks.account = v.account AND tasks.name = v.name AND tasks.node = v.node",
        );
        query.build().execute(&mut *conn).await?;
    }
    Ok(())
}
