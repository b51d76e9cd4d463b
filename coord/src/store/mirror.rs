//! Mirroring what nodes say: their events and the place up to which we have them move together, so
//! each event is taken exactly once.

use std::collections::{BTreeMap, BTreeSet};

use rhizome_model::{DeploymentId, Event, Failure, NodeId, Phase, What};
use serde_json::Value;
use sqlx::sqlite::SqliteConnection;

use super::task::{row, rows};
use super::{
    Durability, Line, News, Order, ROWS, Result, Statements, Store, TaskKey, TaskRow, Values,
    append_one, key_of, number,
};
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
        for (id, news) in news {
            self.waker.tell(&id, news);
        }
        Ok(mirrored)
    }

    /// The node answered a delete that it has nothing of the kind.
    pub async fn gone(&self, order: &Order, event: Event) -> Result<bool> {
        let same = |envelope: &String, now: &TaskRow| now.envelope == *envelope;
        self.apply(&order.key, order.envelope.clone(), same, event).await
    }

    /// What a look at the node showed and no event told, if the task has not moved since.
    pub async fn found(&self, held: &TaskRow, event: Event) -> Result<bool> {
        let same = |held: &TaskRow, now: &TaskRow| {
            now.updated_at == held.updated_at && now.phase == held.phase
        };
        self.apply(&held.key, held.clone(), same, event).await
    }

    async fn apply<H: Send + Sync + 'static>(
        &self,
        key: &TaskKey,
        held: H,
        same: Same<H>,
        event: Event,
    ) -> Result<bool> {
        let id = event.deployment.clone();
        let values = (key.clone(), held, same, event);
        let applying =
            self.writer.write(Durability::Told, values, |conn, (key, held, same, event)| {
                Box::pin(apply(conn, key, held, *same, event))
            });
        let applied = applying.await?;
        if applied {
            self.waker.tell(&id, News::Stored);
        }
        Ok(applied)
    }
}

/// Whether a task is still what was held of it.
type Same<H> = fn(&H, &TaskRow) -> bool;

async fn forget(conn: &mut SqliteConnection, node: NodeId) -> Result<()> {
    sqlx::query("DELETE FROM cursors WHERE node = $1").bind(number(node.0)).execute(conn).await?;
    Ok(())
}

async fn apply<H>(
    conn: &mut SqliteConnection,
    key: &TaskKey,
    held: &H,
    same: Same<H>,
    event: &Event,
) -> Result<bool> {
    let Some(task) = row(conn, key).await?.filter(|now| same(held, now)) else {
        return Ok(false);
    };
    let mut task = Moving::new(task, 0);
    if !task.take(event) {
        return Ok(false);
    }
    let mut statements = Statements::default();
    write(&mut statements, &[&task])?;
    statements.execute(conn).await?;
    append_one(conn, event.clone()).await?;
    Ok(true)
}

/// What changed, and the news.
async fn mirror(
    conn: &mut SqliteConnection,
    node: NodeId,
    events: &[Event],
    place: Option<&str>,
) -> Result<(Mirrored, Vec<(DeploymentId, News)>)> {
    let about: BTreeSet<_> = events.iter().map(|e| e.deployment.clone()).collect();
    let mut tasks: BTreeMap<_, _> = rows(conn, node, &about)
        .await?
        .into_iter()
        .map(|(row, newest)| (row.key.deployment.clone(), Moving::new(row, newest)))
        .collect();
    let (mut mirrored, mut lines) = (Mirrored::default(), Vec::new());
    for event in events {
        // A node speaks for its own tasks only.
        let Some(task) = tasks.get_mut(&event.deployment) else { continue };
        if !task.take(event) {
            continue;
        }
        if matches!(event.what, What::Phase { phase, .. } if phase.is_settled()) {
            mirrored.settled.insert(event.deployment.clone());
        }
        task.newest += 1;
        task.at = event.at;
        let body = serde_json::to_string(&Event { node: Some(node), ..event.clone() })?;
        lines.push(Line { deployment: &event.deployment, number: task.newest, body });
    }
    let tasks: Vec<_> = tasks.into_values().filter(|t| t.newest > t.before).collect();
    let mut statements = Statements::default();
    let moved: Vec<_> = tasks.iter().filter(|t| t.moved).collect();
    moved.chunks(ROWS).try_for_each(|some| write(&mut statements, some))?;
    tasks.chunks(ROWS).for_each(|some| count_events(&mut statements, some));
    let news = lines.iter().map(Line::news).collect();
    statements.append(lines);
    for task in &tasks {
        statements.trim(&task.row.key.deployment, task.before, task.newest);
    }
    if let Some(place) = place {
        let values = |row: &mut Values<'_>| {
            row.push_bind(number(node.0)).push_bind(place.to_owned());
        };
        let or = "ON CONFLICT (node) DO UPDATE SET place = excluded.place";
        statements.with("INSERT INTO cursors (node, place) VALUES", values, or);
    }
    statements.execute(conn).await?;
    Ok((mirrored, news))
}

/// Notes the numbers of the newest events.
fn count_events(statements: &mut Statements, tasks: &[Moving]) {
    let query = statements.next("WITH v (account, name, newest, at) AS (");
    query.push_values(tasks, |mut row, task| {
        let (account, name) = key_of(&task.row.key.deployment);
        row.push_bind(account).push_bind(name.to_owned());
        row.push_bind(task.newest).push_bind(task.at);
    });
    query.push(
        ") UPDATE deployments SET last_event = v.newest, updated_at = v.at FROM v
           WHERE deployments.account = v.account AND deployments.name = v.name",
    );
}

/// A task, and what events say of it.
struct Moving {
    row: TaskRow,
    moved: bool,
    failure: Option<Failure>,
    /// None: those that it had.
    outputs: Option<Value>,
    /// The numbers of the deployment's newest event, and when that was.
    before: i64,
    newest: i64,
    at: i64,
}

impl Moving {
    fn new(row: TaskRow, newest: i64) -> Self {
        Self { row, moved: false, failure: None, outputs: None, before: newest, newest, at: 0 }
    }

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

fn write(statements: &mut Statements, tasks: &[&Moving]) -> Result<()> {
    let now = rhizome_service::clock::now_ms();
    let mut rows = Vec::with_capacity(tasks.len());
    for task in tasks {
        let failure = task.failure.as_ref().map(serde_json::to_string).transpose()?;
        rows.push((task, failure, task.outputs.as_ref().map(ToString::to_string)));
    }
    let query = statements
        .next("WITH v (account, name, node, phase, holds, good, failure, outputs, at) AS (");
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
    Ok(())
}
