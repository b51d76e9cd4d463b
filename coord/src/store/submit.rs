//! Taking a verified envelope: one durable transaction, all or nothing.

use rhizome_identity::Verified;
use rhizome_model::api::Submitted;
use rhizome_model::{
    Code, DeploymentId, Document, Event, Failure, Move, NodeId, Phase, Version, What,
};
use sqlx::sqlite::SqliteConnection;

use super::audit::Entry;
use super::rows::RawTask;
use super::{
    AuditEntry, Durability, Line, News, Result, Statements, Store, TaskRow, Values, count, key_of,
    number,
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
        let (submitted, body) = taking.await??;
        let news = News::Event { number: submitted.after + 1, body: body.into() };
        self.waker.tell(&submitted.deployment, news);
        Ok(submitted)
    }
}

/// Refuses before it writes anything; else with the event that it wrote.
async fn submit(
    conn: &mut SqliteConnection,
    verified: &Verified,
    bytes: &[u8],
    now_ms: i64,
) -> Result<Result<(Submitted, String), Failure>> {
    let document = &verified.document;
    let id = document.deployment_id();
    if let Some(replayed) = used_nonce(conn, document, now_ms).await? {
        return Ok(Err(replayed));
    }
    let Newest { version, last_event, tasks } = newest(conn, &id).await?;
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
    let (version, digest) = (document.version(), &verified.digest);
    let what = What::Phase { phase, failure: None, outputs: None };
    let event = Event { at: now_ms, deployment: id.clone(), version, node: None, what };
    let body = serde_json::to_string(&event)?;
    let mut statements = Statements::default();
    note_nonce(&mut statements, document, now_ms);
    write_deployment(&mut statements, &id, version, last_event + 1, now_ms);
    write_envelope(&mut statements, verified, bytes, now_ms);
    match document {
        Document::Deployment(_) => {
            supersede(&mut statements, &id, &tasks, &phases, version, digest, now_ms);
        }
        Document::Delete(_) | Document::Operation(_) => {
            delete(&mut statements, &id, &phases, digest, now_ms);
        }
    }
    statements.append(vec![Line { deployment: &id, number: last_event + 1, body: body.clone() }]);
    statements.trim(&id, last_event, last_event + 1);
    let entry = AuditEntry {
        at: now_ms,
        digest,
        keyids: &verified.signers,
        account: Some(id.account),
        refusal: None,
    };
    Entry::from(&entry).write(&mut statements);
    statements.execute(conn).await?;
    // Digests are as good as dice: one in sixteen tidies up.
    if digest.starts_with('0') {
        forget_envelopes(conn, &id).await?;
    }
    let nodes = phases.into_iter().map(|(node, _)| node).collect();
    let after = count(last_event);
    Ok(Ok((Submitted { deployment: id, version, phase, nodes, after }, body)))
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

fn note_nonce(statements: &mut Statements, document: &Document, now_ms: i64) {
    let id = document.deployment_id();
    let values = |row: &mut Values<'_>| {
        let (account, name) = key_of(&id);
        row.push_bind(account).push_bind(document.nonce().to_owned());
        row.push_bind(name.to_owned()).push_bind(number(document.version().0));
        row.push_bind(now_ms);
        row.push_bind(document.window().expires.saturating_add(1).saturating_mul(1000));
    };
    let insert =
        "INSERT INTO nonces (account, nonce, name, version, accepted_at, expires_at) VALUES";
    statements.with(insert, values, "");
}

#[derive(sqlx::FromRow)]
struct OfDeployment {
    newest: i64,
    last_event: i64,
    #[sqlx(flatten)]
    task: RawTask,
}

/// A deployment as it is; all nothing when there is none.
struct Newest {
    version: Option<Version>,
    last_event: i64,
    tasks: Vec<TaskRow>,
}

async fn newest(conn: &mut SqliteConnection, id: &DeploymentId) -> Result<Newest> {
    let (account, name) = key_of(id);
    let rows: Vec<OfDeployment> = sqlx::query_as(
        "SELECT deployments.version AS newest, last_event, tasks.* FROM deployments
         JOIN tasks ON tasks.account = deployments.account AND tasks.name = deployments.name
         WHERE deployments.account = $1 AND deployments.name = $2 ORDER BY node",
    )
    .bind(account)
    .bind(name)
    .fetch_all(conn)
    .await?;
    // Each deployment has a task from its first version on.
    let version = rows.first().map(|row| Version(count(row.newest)));
    let last_event = rows.first().map_or(0, |row| row.last_event);
    let tasks: Result<_> = rows.into_iter().map(|row| row.task.try_into()).collect();
    Ok(Newest { version, last_event, tasks: tasks? })
}

fn write_deployment(
    statements: &mut Statements,
    id: &DeploymentId,
    version: Version,
    last_event: i64,
    now_ms: i64,
) {
    let values = |row: &mut Values<'_>| {
        let (account, name) = key_of(id);
        row.push_bind(account).push_bind(name.to_owned()).push_bind(number(version.0));
        row.push_bind(last_event).push_bind(now_ms).push_bind(now_ms);
    };
    statements.with(
        "INSERT INTO deployments (account, name, version, last_event, submitted_at, updated_at)
         VALUES",
        values,
        "ON CONFLICT (account, name) DO UPDATE SET version = excluded.version,
           last_event = excluded.last_event, submitted_at = excluded.submitted_at,
           updated_at = excluded.updated_at",
    );
}

fn write_envelope(statements: &mut Statements, verified: &Verified, bytes: &[u8], now_ms: i64) {
    let id = verified.document.deployment_id();
    let values = |row: &mut Values<'_>| {
        let (account, name) = key_of(&id);
        row.push_bind(verified.digest.clone()).push_bind(account).push_bind(name.to_owned());
        row.push_bind(number(verified.document.version().0)).push_bind(now_ms);
        row.push_bind(bytes.to_owned());
    };
    statements.with(
        "INSERT INTO envelopes (digest, account, name, version, accepted_at, bytes) VALUES",
        values,
        "ON CONFLICT (digest) DO UPDATE SET accepted_at = excluded.accepted_at,
           bytes = excluded.bytes",
    );
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
fn supersede(
    statements: &mut Statements,
    id: &DeploymentId,
    tasks: &[TaskRow],
    phases: &[(NodeId, Phase)],
    version: Version,
    digest: &str,
    now_ms: i64,
) {
    let (account, name) = key_of(id);
    for task in tasks.iter().filter(|t| phases.iter().all(|(node, _)| *node != t.key.node)) {
        let delete = statements.next("DELETE FROM tasks WHERE account = ");
        delete.push_bind(account).push(" AND name = ").push_bind(name.to_owned());
        delete.push(" AND node = ").push_bind(number(task.key.node.0));
    }
    for (node, phase) in phases {
        let values = |row: &mut Values<'_>| {
            row.push_bind(account).push_bind(name.to_owned()).push_bind(number(node.0));
            row.push_bind(number(version.0)).push_bind(phase.to_string());
            row.push_bind(digest.to_owned()).push("FALSE").push("FALSE").push_bind(now_ms);
        };
        statements.with(
            "INSERT INTO tasks
               (account, name, node, version, phase, envelope, delivered, holds, updated_at)
             VALUES",
            values,
            "ON CONFLICT (account, name, node) DO UPDATE SET version = excluded.version,
               phase = excluded.phase, envelope = excluded.envelope, delivered = FALSE,
               failure = NULL, outputs = NULL, waiting_for = NULL,
               updated_at = excluded.updated_at",
        );
    }
}

/// The tasks of these nodes are to be deleted there.
fn delete(
    statements: &mut Statements,
    id: &DeploymentId,
    phases: &[(NodeId, Phase)],
    digest: &str,
    now_ms: i64,
) {
    let (account, name) = key_of(id);
    for (node, phase) in phases {
        let update = statements.next("UPDATE tasks SET phase = ");
        update.push_bind(phase.to_string()).push(", envelope = ").push_bind(digest.to_owned());
        update.push(", delivered = FALSE, failure = NULL, waiting_for = NULL, updated_at = ");
        update.push_bind(now_ms).push(" WHERE account = ").push_bind(account);
        update.push(" AND name = ").push_bind(name.to_owned());
        update.push(" AND node = ").push_bind(number(node.0));
    }
}
