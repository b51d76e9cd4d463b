//! Tasks on their way to their nodes.

use std::collections::BTreeSet;

use rhizome_model::api::TaskView;
use rhizome_model::{DeploymentId, Event, Failure, Move, NodeId, Phase, Version, What};
use sqlx::QueryBuilder;
use sqlx::sqlite::SqliteConnection;

use super::rows::{RawTask, deployment_id, seen_view};
use super::{
    Durability, News, ROWS, Result, Store, TaskKey, TaskRow, append_one, count, key_of, number,
};

/// What a node shall be sent.
#[derive(Debug, Clone)]
pub struct Order {
    pub key: TaskKey,
    pub version: Version,
    pub deletes: bool,
    /// The envelope's digest, and the envelope.
    pub envelope: String,
    pub bytes: Vec<u8>,
}

impl Order {
    /// An event of this deployment on this node, or of coord itself.
    pub fn event(&self, node: Option<NodeId>, at: i64, what: What) -> Event {
        let deployment = self.key.deployment.clone();
        Event { at, deployment, version: self.version, node, what }
    }
}

impl Store {
    /// What the task's node has not got yet.
    pub async fn order(&self, key: &TaskKey) -> Result<Option<Order>> {
        let (account, name) = key_of(&key.deployment);
        let found: Option<(i64, String, String, Vec<u8>)> = sqlx::query_as(
            "SELECT tasks.version, phase, envelope, bytes FROM tasks
             JOIN envelopes ON envelopes.digest = tasks.envelope
             WHERE tasks.account = $1 AND tasks.name = $2 AND tasks.node = $3 AND NOT delivered",
        )
        .bind(account)
        .bind(name)
        .bind(number(key.node.0))
        .fetch_optional(&self.readers)
        .await?;
        Ok(found.map(|(version, phase, envelope, bytes)| Order {
            key: key.clone(),
            version: Version(count(version)),
            deletes: phase == Phase::Deleting.to_string(),
            envelope,
            bytes,
        }))
    }

    pub async fn envelope(&self, digest: &str) -> Result<Option<Vec<u8>>> {
        Ok(sqlx::query_scalar("SELECT bytes FROM envelopes WHERE digest = $1")
            .bind(digest)
            .fetch_optional(&self.readers)
            .await?)
    }

    /// Tasks that are still to be sent.
    pub async fn undelivered(&self, limit: usize) -> Result<Vec<TaskKey>> {
        let rows: Vec<(i64, String, i64)> = sqlx::query_as(
            "SELECT account, name, node FROM tasks WHERE NOT delivered ORDER BY updated_at LIMIT $1",
        )
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter()
            .map(|(account, name, node)| {
                let deployment = deployment_id(account, &name)?;
                Ok(TaskKey { deployment, node: NodeId(count(node)) })
            })
            .collect()
    }

    /// The node answered that it has the envelope. Its events say what becomes of it.
    pub async fn delivered(&self, key: &TaskKey, digest: &str, view: &TaskView) -> Result<()> {
        let values = (key.clone(), digest.to_owned(), seen_view(view)?);
        let noting = self.writer.write(Durability::Told, values, |conn, (key, digest, view)| {
            Box::pin(delivered(conn, key, digest, view))
        });
        noting.await
    }

    /// The node said no, once and for all.
    pub async fn refused(
        &self,
        key: &TaskKey,
        digest: &str,
        failure: &Failure,
        now_ms: i64,
    ) -> Result<()> {
        let values = (key.clone(), digest.to_owned(), failure.clone(), now_ms);
        let refusing =
            self.writer.write(Durability::Told, values, |conn, (key, digest, failure, now)| {
                Box::pin(refused(conn, key, digest, failure, *now))
            });
        refusing.await?;
        self.waker.tell(&key.deployment, News::Stored);
        Ok(())
    }

    /// Why a task does not move; with `told` those who follow it are told too.
    pub async fn waiting(
        &self,
        order: &Order,
        reason: &str,
        told: Option<What>,
        now_ms: i64,
    ) -> Result<()> {
        let wake = told.is_some();
        let told = told.map(|what| order.event(None, now_ms, what));
        let values = (order.key.clone(), order.envelope.clone(), reason.to_owned(), told);
        let noting =
            self.writer.write(Durability::Told, values, |conn, (key, digest, reason, told)| {
                Box::pin(waiting(conn, key, digest, reason, told.as_ref()))
            });
        noting.await?;
        if wake {
            self.waker.tell(&order.key.deployment, News::Stored);
        }
        Ok(())
    }

    /// The node does not know what it had: it is to be sent again. Says whether that is so still.
    pub async fn lost(&self, held: &TaskRow, now_ms: i64) -> Result<bool> {
        let values = (held.clone(), now_ms);
        let losing = self
            .writer
            .write(Durability::Told, values, |conn, (held, now)| Box::pin(lost(conn, held, *now)));
        let lost = losing.await?;
        if lost {
            self.waker.tell(&held.key.deployment, News::Stored);
        }
        Ok(lost)
    }

    /// Keeps how the node shows a task.
    pub async fn seen(&self, view: &TaskView) -> Result<()> {
        let key = TaskKey { deployment: view.deployment.clone(), node: view.node };
        let values = (key, seen_view(view)?);
        self.writer
            .write(Durability::Told, values, |conn, (key, view)| Box::pin(seen(conn, key, view)))
            .await
    }
}

async fn delivered(
    conn: &mut SqliteConnection,
    key: &TaskKey,
    digest: &str,
    view: &str,
) -> Result<()> {
    let (account, name) = key_of(&key.deployment);
    sqlx::query(
        "UPDATE tasks SET delivered = TRUE, holds = TRUE, waiting_for = NULL, view = $5
         WHERE account = $1 AND name = $2 AND node = $3 AND envelope = $4",
    )
    .bind(account)
    .bind(name)
    .bind(number(key.node.0))
    .bind(digest)
    .bind(view)
    .execute(conn)
    .await?;
    Ok(())
}

async fn refused(
    conn: &mut SqliteConnection,
    key: &TaskKey,
    digest: &str,
    failure: &Failure,
    now_ms: i64,
) -> Result<()> {
    let Some(task) = row(conn, key).await?.filter(|t| t.envelope == digest) else {
        return Ok(());
    };
    let (account, name) = key_of(&key.deployment);
    let (phase, waiting) = match task.phase {
        // A delete that its node refuses stays owed: it waits for a newly signed one.
        Phase::Deleting => {
            let reason =
                format!("node {} refuses to delete it: {failure}; delete it again", key.node);
            (Phase::Deleting, Some(reason))
        }
        phase => match phase.step(Move::Refuse) {
            Ok(refused) => (refused, None),
            // It had taken it before: what is true of the task, its events say.
            Err(_) => {
                sqlx::query(
                    "UPDATE tasks SET delivered = TRUE, waiting_for = NULL
                     WHERE account = $1 AND name = $2 AND node = $3",
                )
                .bind(account)
                .bind(name)
                .bind(number(key.node.0))
                .execute(conn)
                .await?;
                return Ok(());
            }
        },
    };
    sqlx::query(
        "UPDATE tasks SET delivered = TRUE, phase = $4, failure = $5, waiting_for = $6,
           updated_at = $7
         WHERE account = $1 AND name = $2 AND node = $3",
    )
    .bind(account)
    .bind(name)
    .bind(number(key.node.0))
    .bind(phase.to_string())
    .bind(serde_json::to_string(failure)?)
    .bind(waiting)
    .bind(now_ms)
    .execute(&mut *conn)
    .await?;
    let what = What::Phase { phase, failure: Some(failure.clone()), outputs: None };
    append_one(conn, event(&task, Some(key.node), now_ms, what)).await
}

async fn waiting(
    conn: &mut SqliteConnection,
    key: &TaskKey,
    digest: &str,
    reason: &str,
    told: Option<&Event>,
) -> Result<()> {
    let (account, name) = key_of(&key.deployment);
    sqlx::query(
        "UPDATE tasks SET waiting_for = $5
         WHERE account = $1 AND name = $2 AND node = $3 AND envelope = $4 AND NOT delivered",
    )
    .bind(account)
    .bind(name)
    .bind(number(key.node.0))
    .bind(digest)
    .bind(reason)
    .execute(&mut *conn)
    .await?;
    match told {
        Some(event) => append_one(conn, event.clone()).await,
        None => Ok(()),
    }
}

async fn lost(conn: &mut SqliteConnection, held: &TaskRow, now_ms: i64) -> Result<bool> {
    let key = &held.key;
    let unchanged = |t: &TaskRow| t.updated_at == held.updated_at && t.delivered;
    let Some(task) = row(conn, key).await?.filter(unchanged) else { return Ok(false) };
    // What was ready begins anew; what was under way is still under way.
    let phase = match task.phase {
        Phase::Ready => task.phase.step(Move::Supersede).unwrap_or(task.phase),
        other => other,
    };
    let (account, name) = key_of(&key.deployment);
    sqlx::query(
        "UPDATE tasks SET delivered = FALSE, phase = $4, view = NULL, updated_at = $5
         WHERE account = $1 AND name = $2 AND node = $3",
    )
    .bind(account)
    .bind(name)
    .bind(number(key.node.0))
    .bind(phase.to_string())
    .bind(now_ms)
    .execute(&mut *conn)
    .await?;
    let what = What::Retrying {
        what: format!("sending it to node {}", key.node),
        cause: "the node does not know it any more".into(),
        in_ms: 0,
    };
    append_one(conn, event(&task, None, now_ms, what)).await?;
    if phase != task.phase {
        let what = What::Phase { phase, failure: None, outputs: None };
        append_one(conn, event(&task, None, now_ms, what)).await?;
    }
    Ok(true)
}

async fn seen(conn: &mut SqliteConnection, key: &TaskKey, view: &str) -> Result<()> {
    let (account, name) = key_of(&key.deployment);
    sqlx::query("UPDATE tasks SET view = $4 WHERE account = $1 AND name = $2 AND node = $3")
        .bind(account)
        .bind(name)
        .bind(number(key.node.0))
        .bind(view)
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) async fn row(conn: &mut SqliteConnection, key: &TaskKey) -> Result<Option<TaskRow>> {
    let (account, name) = key_of(&key.deployment);
    let raw: Option<RawTask> =
        sqlx::query_as("SELECT * FROM tasks WHERE account = $1 AND name = $2 AND node = $3")
            .bind(account)
            .bind(name)
            .bind(number(key.node.0))
            .fetch_optional(conn)
            .await?;
    raw.map(TaskRow::try_from).transpose()
}

#[derive(sqlx::FromRow)]
struct Counted {
    newest: i64,
    #[sqlx(flatten)]
    task: RawTask,
}

/// A node's tasks of these deployments, each with the number of its deployment's newest event.
pub(super) async fn rows(
    conn: &mut SqliteConnection,
    node: NodeId,
    deployments: &BTreeSet<DeploymentId>,
) -> Result<Vec<(TaskRow, i64)>> {
    let all: Vec<_> = deployments.iter().collect();
    let mut found = Vec::with_capacity(all.len());
    for some in all.chunks(ROWS) {
        let mut query = QueryBuilder::new("WITH v (account, name) AS (");
        query.push_values(some, |mut row, id| {
            let (account, name) = key_of(id);
            row.push_bind(account).push_bind(name.to_owned());
        });
        query.push(
            ") SELECT deployments.last_event AS newest, tasks.* FROM v
               JOIN deployments
                 ON deployments.account = v.account AND deployments.name = v.name
               JOIN tasks ON tasks.account = v.account AND tasks.name = v.name
               WHERE tasks.node = ",
        );
        query.push_bind(number(node.0));
        let counted: Vec<Counted> = query.build_query_as().fetch_all(&mut *conn).await?;
        for Counted { newest, task } in counted {
            found.push((TaskRow::try_from(task)?, newest));
        }
    }
    Ok(found)
}

fn event(task: &TaskRow, node: Option<NodeId>, at: i64, what: What) -> Event {
    Event { at, deployment: task.key.deployment.clone(), version: task.version, node, what }
}
