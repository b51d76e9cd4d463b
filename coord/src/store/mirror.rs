//! Mirroring what nodes say: their events and the place up to which we have them move together, so
//! each event is taken exactly once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rhizome_model::{DeploymentId, Event, NodeId, Phase, What};
use sqlx::sqlite::SqliteConnection;

use super::task::row;
use super::{Result, Store, TaskKey, TaskRow, append, begin, key_of, number};
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
        let mut writers = self.writers.lock().await;
        sqlx::query("DELETE FROM cursors WHERE node = $1")
            .bind(number(node.0))
            .execute(&mut writers.quick)
            .await?;
        Ok(())
    }

    /// Takes a node's events in their order, up to and with `place`.
    pub async fn mirror(
        &self,
        node: NodeId,
        events: Vec<Event>,
        place: Option<&str>,
    ) -> Result<Mirrored> {
        let mut mirrored = Mirrored::default();
        let mut news: BTreeMap<DeploymentId, Vec<Event>> = BTreeMap::new();
        let mut rows: HashMap<DeploymentId, Option<TaskRow>> = HashMap::new();
        let mut writers = self.writers.lock().await;
        let mut tx = begin(&mut writers.quick).await?;
        for mut event in events {
            event.node = Some(node);
            let id = event.deployment.clone();
            if !rows.contains_key(&id) {
                let key = TaskKey { deployment: id.clone(), node };
                rows.insert(id.clone(), row(&mut tx, &key).await?);
            }
            // A node speaks for its own tasks only.
            let Some(Some(task)) = rows.get_mut(&id) else { continue };
            if !take(&mut tx, task, &event).await? {
                continue;
            }
            if matches!(event.what, What::Phase { phase, .. } if phase.is_settled()) {
                mirrored.settled.insert(id.clone());
            }
            news.entry(id).or_default().push(event);
        }
        for (id, events) in &news {
            append(&mut tx, id, events).await?;
        }
        if let Some(place) = place {
            sqlx::query(
                "INSERT INTO cursors (node, place) VALUES ($1, $2)
                 ON CONFLICT (node) DO UPDATE SET place = $2",
            )
            .bind(number(node.0))
            .bind(place)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        drop(writers);
        news.keys().for_each(|id| self.waker.wake(id));
        Ok(mirrored)
    }

    /// The node answered a delete that it has nothing of the kind.
    pub async fn gone(&self, held: &TaskRow, event: Event) -> Result<bool> {
        let same = |t: &TaskRow| t.envelope == held.envelope;
        self.apply(&held.key, same, event).await
    }

    /// What a look at the node showed and no event told, if the task has not moved since.
    pub async fn found(&self, held: &TaskRow, event: Event) -> Result<bool> {
        let same = |t: &TaskRow| t.updated_at == held.updated_at && t.phase == held.phase;
        self.apply(&held.key, same, event).await
    }

    async fn apply(
        &self,
        key: &TaskKey,
        same: impl Fn(&TaskRow) -> bool,
        event: Event,
    ) -> Result<bool> {
        let mut writers = self.writers.lock().await;
        let mut tx = begin(&mut writers.quick).await?;
        let Some(mut task) = row(&mut tx, key).await?.filter(same) else { return Ok(false) };
        if !take(&mut tx, &mut task, &event).await? {
            return Ok(false);
        }
        append(&mut tx, &key.deployment, &[event]).await?;
        tx.commit().await?;
        drop(writers);
        self.waker.wake(&key.deployment);
        Ok(true)
    }
}

/// Moves the task if the event is about its phase. Says whether the event is news.
async fn take(conn: &mut SqliteConnection, task: &mut TaskRow, event: &Event) -> Result<bool> {
    let What::Phase { phase, failure, outputs } = &event.what else { return Ok(true) };
    if event.version != task.version {
        // About a version before: kept in the log, but it never moves a newer task.
        return Ok(event.version < task.version);
    }
    if !moves(task.phase, *phase) {
        return Ok(false);
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
    let (account, name) = key_of(&task.key.deployment);
    sqlx::query(
        "UPDATE tasks SET phase = $4, holds = $5, good = $6, failure = $7,
           outputs = COALESCE($8, outputs), waiting_for = NULL, updated_at = $9,
           delivered = CASE WHEN $4 = 'deleted' THEN TRUE ELSE delivered END
         WHERE account = $1 AND name = $2 AND node = $3",
    )
    .bind(account)
    .bind(name)
    .bind(number(task.key.node.0))
    .bind(phase.to_string())
    .bind(task.holds)
    .bind(&task.good)
    .bind(failure.as_ref().map(serde_json::to_string).transpose()?)
    .bind(outputs.as_ref().filter(|o| o.is_object()).map(ToString::to_string))
    .bind(rhizome_service::clock::now_ms())
    .execute(conn)
    .await?;
    Ok(true)
}
