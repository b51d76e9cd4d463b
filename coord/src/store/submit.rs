//! Taking a verified envelope: one durable transaction, all or nothing.

use rhizome_identity::Verified;
use rhizome_model::api::Submitted;
use rhizome_model::{
    Code, DeploymentId, Document, Event, Failure, Move, NodeId, Phase, Version, What,
};
use sqlx::sqlite::SqliteConnection;

use super::audit::Line;
use super::rows::RawTask;
use super::{
    AuditEntry, Durability, Result, Store, TaskRow, count, key_of, number, trim, write_lines,
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
        if i64::try_from(verified.document.version().0).is_err() {
            return Err(Failure::new(Code::InvalidDocument, "version: the number is too large"));
        }
        let values = (verified.clone(), bytes.to_owned(), now_ms);
        let taking =
            self.writer.write(Durability::Promised, values, |conn, (verified, bytes, now)| {
                Box::pin(submit(conn, verified, bytes, *now))
            });
        let submitted = taking.await??;
        self.waker.wake(&submitted.deployment);
        Ok(submitted)
    }
}

/// Refuses before it writes anything.
async fn submit(
    conn: &mut SqliteConnection,
    verified: &Verified,
    bytes: &[u8],
    now_ms: i64,
) -> Result<Result<Submitted, Failure>> {
    let document = &verified.document;
    let id = document.deployment_id();
    if let Some(replayed) = used_nonce(conn, document, now_ms).await? {
        return Ok(Err(replayed));
    }
    let (version, tasks) = newest(conn, &id).await?;
    let current = version.map(|version| Current {
        version,
        tasks: tasks
            .iter()
            .map(|t| CurrentTask { node: t.key.node, phase: t.phase, holds: t.holds })
            .collect(),
    });
    let phases = admit(document, current.as_ref()).and_then(|()| phases(document, &tasks));
    let (phase, phases) = match phases {
        Ok(phases) => phases,
        Err(refusal) => return Ok(Err(refusal)),
    };
    note_nonce(conn, document, now_ms).await?;
    let number = write_deployment(conn, &id, document, now_ms).await?;
    write_envelope(conn, &id, verified, bytes, now_ms).await?;
    match document {
        Document::Deployment(d) => {
            supersede(conn, &id, &tasks, &phases, d.version, &verified.digest, now_ms).await?;
        }
        Document::Delete(_) | Document::Operation(_) => {
            delete(conn, &id, &phases, &verified.digest, now_ms).await?;
        }
    }
    let what = What::Phase { phase, failure: None, outputs: None };
    let version = document.version();
    let event = Event { at: now_ms, deployment: id.clone(), version, node: None, what };
    write_lines(conn, &[(&id, number, serde_json::to_string(&event)?)]).await?;
    trim(conn, &id, number, 1).await?;
    let entry = AuditEntry {
        at: now_ms,
        digest: &verified.digest,
        keyids: &verified.signers,
        account: Some(id.account),
        refusal: None,
    };
    Line::from(&entry).write(conn).await?;
    let nodes = phases.into_iter().map(|(node, _)| node).collect();
    Ok(Ok(Submitted { deployment: id, version, phase, nodes, after: count(number - 1) }))
}

/// What the deployment becomes, and its task on each node that has something to do.
type Phases = (Phase, Vec<(NodeId, Phase)>);

fn phases(document: &Document, tasks: &[TaskRow]) -> Result<Phases, Failure> {
    let step = |task: &TaskRow, step: Move| {
        task.phase.step(step).map_err(|e| Failure::new(Code::Conflict, e.to_string()))
    };
    match document {
        Document::Deployment(d) => {
            let phase = |node: &NodeId| {
                let task = tasks.iter().find(|t| t.key.node == *node);
                let phase = task.map_or(Ok(Phase::Pending), |t| step(t, Move::Supersede));
                phase.map(|phase| (*node, phase))
            };
            Ok((Phase::Pending, d.placement.nodes.iter().map(phase).collect::<Result<_, _>>()?))
        }
        Document::Delete(_) => {
            let phase = |task: &TaskRow| {
                // A second delete takes the place of one that its node refused, or that has expired.
                if task.phase != Phase::Deleting {
                    step(task, Move::Delete)?;
                }
                Ok((task.key.node, Phase::Deleting))
            };
            let alive = tasks.iter().filter(|t| t.phase != Phase::Deleted);
            Ok((Phase::Deleting, alive.map(phase).collect::<Result<_, Failure>>()?))
        }
        Document::Operation(_) => Err(rules::no_operation()),
    }
}

/// The refusal of an envelope that was here before.
async fn used_nonce(
    conn: &mut SqliteConnection,
    document: &Document,
    now_ms: i64,
) -> Result<Option<Failure>> {
    let account = number(document.deployment_id().account.0);
    let used: Option<(String, i64, i64)> = sqlx::query_as(
        "SELECT name, version, accepted_at FROM nonces WHERE account = $1 AND nonce = $2",
    )
    .bind(account)
    .bind(document.nonce())
    .fetch_optional(conn)
    .await?;
    Ok(used.map(|(name, version, at)| {
        let ago = now_ms.saturating_sub(at) / 1000;
        let message = format!(
            "the nonce was used {ago} s ago for version {version} of {account}/{name}; \
             sign a new envelope with a new nonce"
        );
        Failure::new(Code::Replayed, message)
    }))
}

async fn note_nonce(conn: &mut SqliteConnection, document: &Document, now_ms: i64) -> Result<()> {
    let id = document.deployment_id();
    let (account, name) = key_of(&id);
    sqlx::query(
        "INSERT INTO nonces (account, nonce, name, version, accepted_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(account)
    .bind(document.nonce())
    .bind(name)
    .bind(number(document.version().0))
    .bind(now_ms)
    .bind(document.window().expires.saturating_add(1).saturating_mul(1000))
    .execute(conn)
    .await?;
    Ok(())
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
    phases: &[(NodeId, Phase)],
    version: Version,
    digest: &str,
    now_ms: i64,
) -> Result<()> {
    let (account, name) = key_of(id);
    for task in tasks.iter().filter(|t| phases.iter().all(|(node, _)| *node != t.key.node)) {
        sqlx::query("DELETE FROM tasks WHERE account = $1 AND name = $2 AND node = $3")
            .bind(account)
            .bind(name)
            .bind(number(task.key.node.0))
            .execute(&mut *conn)
            .await?;
    }
    for (node, phase) in phases {
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
        .await?;
    }
    Ok(())
}

/// The tasks of these nodes are to be deleted there.
async fn delete(
    conn: &mut SqliteConnection,
    id: &DeploymentId,
    phases: &[(NodeId, Phase)],
    digest: &str,
    now_ms: i64,
) -> Result<()> {
    let (account, name) = key_of(id);
    for (node, phase) in phases {
        sqlx::query(
            "UPDATE tasks SET phase = $4, envelope = $5, delivered = FALSE, failure = NULL,
               waiting_for = NULL, updated_at = $6
             WHERE account = $1 AND name = $2 AND node = $3",
        )
        .bind(account)
        .bind(name)
        .bind(number(node.0))
        .bind(phase.to_string())
        .bind(digest)
        .bind(now_ms)
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}
