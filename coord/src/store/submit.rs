//! Taking a verified envelope: one durable transaction, all or nothing.

use rhizome_identity::Verified;
use rhizome_model::api::Submitted;
use rhizome_model::{
    Code, DeploymentId, Document, Event, Failure, Move, NodeId, Phase, Version, What,
};
use sqlx::sqlite::SqliteConnection;

use super::rows::RawTask;
use super::{
    AuditEntry, Result, Store, StoreError, TaskRow, audit, begin, count, key_of, number, trim,
    write_lines,
};
use crate::rules::{self, Current, CurrentTask, admit};

/// Envelopes kept of one deployment, some more at times, besides those that tasks need.
const KEPT_ENVELOPES: i64 = 20;

impl Store {
    /// Stores what was submitted, or says why it may not be. Refused, it changes nothing.
    pub async fn submit(
        &self,
        verified: &Verified,
        bytes: &[u8],
        now_ms: i64,
    ) -> Result<Submitted, Failure> {
        let document = &verified.document;
        let id = document.deployment_id();
        if i64::try_from(document.version().0).is_err() {
            return Err(Failure::new(Code::InvalidDocument, "version: the number is too large"));
        }
        let mut writers = self.writers.lock().await;
        let mut tx = begin(&mut writers.full).await?;
        use_nonce(&mut tx, document, now_ms).await?;
        let (version, tasks) = newest(&mut tx, &id).await?;
        let current = version.map(|version| Current {
            version,
            tasks: tasks
                .iter()
                .map(|t| CurrentTask { node: t.key.node, phase: t.phase, holds: t.holds })
                .collect(),
        });
        admit(document, current.as_ref())?;
        let number = write_deployment(&mut tx, &id, document, now_ms).await?;
        write_envelope(&mut tx, &id, verified, bytes, now_ms).await?;
        let (phase, nodes) = match document {
            Document::Deployment(d) => {
                let nodes = d.placement.nodes.clone();
                supersede(&mut tx, &id, &tasks, &nodes, d.version, &verified.digest, now_ms)
                    .await?;
                (Phase::Pending, nodes)
            }
            Document::Delete(_) => {
                let nodes = delete(&mut tx, &id, &tasks, &verified.digest, now_ms).await?;
                (Phase::Deleting, nodes)
            }
            Document::Operation(_) => return Err(rules::no_operation()),
        };
        let what = What::Phase { phase, failure: None, outputs: None };
        let version = document.version();
        let event = Event { at: now_ms, deployment: id.clone(), version, node: None, what };
        let body = serde_json::to_string(&event).map_err(StoreError::Json)?;
        write_lines(&mut tx, &[(&id, number, body)]).await?;
        trim(&mut tx, &id, number, 1).await?;
        let entry = AuditEntry {
            at: now_ms,
            digest: &verified.digest,
            keyids: &verified.signers,
            account: Some(id.account),
            refusal: None,
        };
        audit::write(&mut tx, &entry).await?;
        tx.commit().await.map_err(StoreError::Sql)?;
        drop(writers);
        self.waker.wake(&id);
        Ok(Submitted { deployment: id, version, phase, nodes, after: count(number - 1) })
    }
}

async fn use_nonce(
    conn: &mut SqliteConnection,
    document: &Document,
    now_ms: i64,
) -> Result<(), Failure> {
    let id = document.deployment_id();
    let (account, name) = key_of(&id);
    let noted = sqlx::query(
        "INSERT INTO nonces (account, nonce, name, version, accepted_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (account, nonce) DO NOTHING",
    )
    .bind(account)
    .bind(document.nonce())
    .bind(name)
    .bind(number(document.version().0))
    .bind(now_ms)
    .bind(document.window().expires.saturating_add(1).saturating_mul(1000))
    .execute(&mut *conn)
    .await
    .map_err(StoreError::Sql)?;
    if noted.rows_affected() == 1 {
        return Ok(());
    }
    let (name, version, at): (String, i64, i64) = sqlx::query_as(
        "SELECT name, version, accepted_at FROM nonces WHERE account = $1 AND nonce = $2",
    )
    .bind(account)
    .bind(document.nonce())
    .fetch_one(&mut *conn)
    .await
    .map_err(StoreError::Sql)?;
    let ago = now_ms.saturating_sub(at) / 1000;
    let message = format!(
        "the nonce was used {ago} s ago for version {version} of {account}/{name}; \
         sign a new envelope with a new nonce"
    );
    Err(Failure::new(Code::Replayed, message))
}

#[derive(sqlx::FromRow)]
struct OfDeployment {
    newest: i64,
    #[sqlx(flatten)]
    task: RawTask,
}

/// The deployment's version, and its tasks.
async fn newest(
    conn: &mut SqliteConnection,
    id: &DeploymentId,
) -> Result<(Option<Version>, Vec<TaskRow>)> {
    let (account, name) = key_of(id);
    let rows: Vec<OfDeployment> = sqlx::query_as(
        "SELECT deployments.version AS newest, tasks.* FROM deployments
         JOIN tasks ON tasks.account = deployments.account AND tasks.name = deployments.name
         WHERE deployments.account = $1 AND deployments.name = $2 ORDER BY node",
    )
    .bind(account)
    .bind(name)
    .fetch_all(conn)
    .await?;
    // Each deployment has a task from its first version on.
    let newest = rows.first().map(|row| Version(count(row.newest)));
    let tasks: Result<_> = rows.into_iter().map(|row| row.task.try_into()).collect();
    Ok((newest, tasks?))
}

pub(super) async fn tasks_of(
    conn: &mut SqliteConnection,
    id: &DeploymentId,
) -> Result<Vec<TaskRow>> {
    let (account, name) = key_of(id);
    let raw: Vec<RawTask> =
        sqlx::query_as("SELECT * FROM tasks WHERE account = $1 AND name = $2 ORDER BY node")
            .bind(account)
            .bind(name)
            .fetch_all(conn)
            .await?;
    raw.into_iter().map(TaskRow::try_from).collect()
}

/// The number of the event of this submission.
async fn write_deployment(
    conn: &mut SqliteConnection,
    id: &DeploymentId,
    document: &Document,
    now_ms: i64,
) -> Result<i64> {
    let (account, name) = key_of(id);
    let number: i64 = sqlx::query_scalar(
        "INSERT INTO deployments (account, name, version, last_event, submitted_at, updated_at)
         VALUES ($1, $2, $3, 1, $4, $4)
         ON CONFLICT (account, name) DO UPDATE SET version = $3, submitted_at = $4, updated_at = $4,
           last_event = deployments.last_event + 1
         RETURNING last_event",
    )
    .bind(account)
    .bind(name)
    .bind(number(document.version().0))
    .bind(now_ms)
    .fetch_one(conn)
    .await?;
    Ok(number)
}

async fn write_envelope(
    conn: &mut SqliteConnection,
    id: &DeploymentId,
    verified: &Verified,
    bytes: &[u8],
    now_ms: i64,
) -> Result<()> {
    let (account, name) = key_of(id);
    sqlx::query(
        "INSERT INTO envelopes (digest, account, name, version, accepted_at, bytes)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (digest) DO UPDATE SET accepted_at = $5, bytes = $6",
    )
    .bind(&verified.digest)
    .bind(account)
    .bind(name)
    .bind(number(verified.document.version().0))
    .bind(now_ms)
    .bind(bytes)
    .execute(&mut *conn)
    .await?;
    // Digests are as good as dice: one in sixteen tidies up.
    if verified.digest.starts_with('0') { forget_envelopes(conn, id).await } else { Ok(()) }
}

async fn forget_envelopes(conn: &mut SqliteConnection, id: &DeploymentId) -> Result<()> {
    let (account, name) = key_of(id);
    sqlx::query(
        "DELETE FROM envelopes WHERE account = $1 AND name = $2
         AND digest NOT IN (SELECT digest FROM envelopes WHERE account = $1 AND name = $2
                            ORDER BY accepted_at DESC, version DESC LIMIT $3)
         AND digest NOT IN (SELECT envelope FROM tasks WHERE account = $1 AND name = $2)
         AND digest NOT IN (SELECT good FROM tasks
                            WHERE account = $1 AND name = $2 AND good IS NOT NULL)",
    )
    .bind(account)
    .bind(name)
    .bind(KEPT_ENVELOPES)
    .execute(&mut *conn)
    .await?;
    Ok(())
}

/// Each named node gets a task of the new version; what held nothing and is not named goes.
async fn supersede(
    conn: &mut SqliteConnection,
    id: &DeploymentId,
    tasks: &[TaskRow],
    nodes: &[NodeId],
    version: Version,
    digest: &str,
    now_ms: i64,
) -> Result<(), Failure> {
    let (account, name) = key_of(id);
    for task in tasks.iter().filter(|t| !nodes.contains(&t.key.node)) {
        sqlx::query("DELETE FROM tasks WHERE account = $1 AND name = $2 AND node = $3")
            .bind(account)
            .bind(name)
            .bind(number(task.key.node.0))
            .execute(&mut *conn)
            .await
            .map_err(StoreError::Sql)?;
    }
    for node in nodes {
        let phase = match tasks.iter().find(|t| t.key.node == *node) {
            Some(task) => step(task, Move::Supersede)?,
            None => Phase::Pending,
        };
        sqlx::query(
            "INSERT INTO tasks
               (account, name, node, version, phase, envelope, delivered, holds, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, FALSE, FALSE, $7)
             ON CONFLICT (account, name, node) DO UPDATE SET
               version = $4, phase = $5, envelope = $6, delivered = FALSE,
               failure = NULL, outputs = NULL, waiting_for = NULL, updated_at = $7",
        )
        .bind(account)
        .bind(name)
        .bind(number(node.0))
        .bind(number(version.0))
        .bind(phase.to_string())
        .bind(digest)
        .bind(now_ms)
        .execute(&mut *conn)
        .await
        .map_err(StoreError::Sql)?;
    }
    Ok(())
}

/// The nodes that have to delete it.
async fn delete(
    conn: &mut SqliteConnection,
    id: &DeploymentId,
    tasks: &[TaskRow],
    digest: &str,
    now_ms: i64,
) -> Result<Vec<NodeId>, Failure> {
    let (account, name) = key_of(id);
    let mut nodes = Vec::new();
    for task in tasks.iter().filter(|t| t.phase != Phase::Deleted) {
        // A second delete takes the place of one that its node refused, or that has expired.
        if task.phase != Phase::Deleting {
            step(task, Move::Delete)?;
        }
        sqlx::query(
            "UPDATE tasks SET phase = $4, envelope = $5, delivered = FALSE, failure = NULL,
               waiting_for = NULL, updated_at = $6
             WHERE account = $1 AND name = $2 AND node = $3",
        )
        .bind(account)
        .bind(name)
        .bind(number(task.key.node.0))
        .bind(Phase::Deleting.to_string())
        .bind(digest)
        .bind(now_ms)
        .execute(&mut *conn)
        .await
        .map_err(StoreError::Sql)?;
        nodes.push(task.key.node);
    }
    Ok(nodes)
}

fn step(task: &TaskRow, step: Move) -> Result<Phase, Failure> {
    task.phase.step(step).map_err(|e| Failure::new(Code::Conflict, e.to_string()))
}
