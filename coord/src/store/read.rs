//! Reads.

use std::collections::BTreeMap;

use rhizome_model::api::DeploymentView;
use rhizome_model::{AccountId, DeploymentId, NodeId, Phase, Version};

use super::rows::{RawTask, deployment_id};
use super::{Result, Store, TaskRow, count, key_of, number};

/// Deployments that one answer lists.
const MAX_LISTED: i64 = 10_000;

/// Events of a deployment, in order, each with its number.
#[derive(Debug, Default)]
pub struct EventPage {
    pub events: Vec<(u64, String)>,
    /// Events before the first of these are kept no longer.
    pub trimmed: bool,
}

#[derive(sqlx::FromRow)]
struct OfDeployment {
    newest: i64,
    submitted_at: i64,
    changed_at: i64,
    #[sqlx(flatten)]
    task: RawTask,
}

impl Store {
    pub async fn deployment(&self, id: &DeploymentId) -> Result<Option<DeploymentView>> {
        let (account, name) = key_of(id);
        let rows: Vec<OfDeployment> = sqlx::query_as(
            "SELECT deployments.version AS newest, submitted_at,
               deployments.updated_at AS changed_at, tasks.*
             FROM deployments
             JOIN tasks ON tasks.account = deployments.account AND tasks.name = deployments.name
             WHERE deployments.account = $1 AND deployments.name = $2 ORDER BY node",
        )
        .bind(account)
        .bind(name)
        .fetch_all(&self.readers)
        .await?;
        // Each deployment has a task from its first version on.
        let Some(OfDeployment { newest, submitted_at, changed_at, .. }) = rows.first() else {
            return Ok(None);
        };
        let (newest, submitted_at, changed_at) = (*newest, *submitted_at, *changed_at);
        let tasks: Vec<_> =
            rows.into_iter().map(|row| row.task.try_into()).collect::<Result<_>>()?;
        Ok(Some(view(id.clone(), newest, submitted_at, changed_at, &tasks)))
    }

    pub async fn has_deployment(&self, id: &DeploymentId) -> Result<bool> {
        let (account, name) = key_of(id);
        let found: Option<i64> =
            sqlx::query_scalar("SELECT version FROM deployments WHERE account = $1 AND name = $2")
                .bind(account)
                .bind(name)
                .fetch_optional(&self.readers)
                .await?;
        Ok(found.is_some())
    }

    /// The account's deployments by name; those that are deleted only if asked for.
    pub async fn deployments(&self, account: AccountId, all: bool) -> Result<Vec<DeploymentView>> {
        let mut conn = self.readers.acquire().await?;
        let rows: Vec<(String, i64, i64, i64)> = sqlx::query_as(
            "SELECT name, version, submitted_at, updated_at FROM deployments
             WHERE account = $1 ORDER BY name LIMIT $2",
        )
        .bind(number(account.0))
        .bind(MAX_LISTED)
        .fetch_all(&mut *conn)
        .await?;
        let raw: Vec<RawTask> =
            sqlx::query_as("SELECT * FROM tasks WHERE account = $1 ORDER BY name, node")
                .bind(number(account.0))
                .fetch_all(&mut *conn)
                .await?;
        let mut tasks: BTreeMap<DeploymentId, Vec<TaskRow>> = BTreeMap::new();
        for task in raw {
            let task = TaskRow::try_from(task)?;
            tasks.entry(task.key.deployment.clone()).or_default().push(task);
        }
        let mut views = Vec::with_capacity(rows.len());
        for (name, version, submitted_at, updated_at) in rows {
            let id = deployment_id(number(account.0), &name)?;
            let own = tasks.remove(&id).unwrap_or_default();
            views.push(view(id, version, submitted_at, updated_at, &own));
        }
        views.retain(|v| all || v.phase != Phase::Deleted);
        Ok(views)
    }

    /// Events after a number, oldest first. `None` when there is no such deployment.
    pub async fn events(&self, id: &DeploymentId, after: u64, limit: usize) -> Result<EventPage> {
        let (account, name) = key_of(id);
        let events: Vec<(i64, String)> = sqlx::query_as(
            "SELECT number, body FROM events WHERE account = $1 AND name = $2 AND number > $3
             ORDER BY number LIMIT $4",
        )
        .bind(account)
        .bind(name)
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.readers)
        .await?;
        let events: Vec<_> = events.into_iter().map(|(n, body)| (count(n), body)).collect();
        let trimmed = events.first().is_some_and(|(first, _)| *first > after.saturating_add(1));
        Ok(EventPage { events, trimmed })
    }

    /// A node's tasks that are not deleted.
    pub async fn tasks_on(&self, node: NodeId) -> Result<Vec<TaskRow>> {
        let raw: Vec<RawTask> =
            sqlx::query_as("SELECT * FROM tasks WHERE node = $1 AND phase <> 'deleted'")
                .bind(number(node.0))
                .fetch_all(&self.readers)
                .await?;
        raw.into_iter().map(TaskRow::try_from).collect()
    }

    /// Nodes that have tasks which are not deleted.
    pub async fn nodes_in_use(&self) -> Result<Vec<NodeId>> {
        let ids: Vec<i64> =
            sqlx::query_scalar("SELECT DISTINCT node FROM tasks WHERE phase <> 'deleted'")
                .fetch_all(&self.readers)
                .await?;
        Ok(ids.into_iter().map(|n| NodeId(count(n))).collect())
    }

    pub async fn tasks_by_phase(&self) -> Result<Vec<(String, u64)>> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT phase, COUNT(*) FROM tasks GROUP BY phase")
                .fetch_all(&self.readers)
                .await?;
        Ok(rows.into_iter().map(|(phase, n)| (phase, count(n))).collect())
    }
}

fn view(
    deployment: DeploymentId,
    version: i64,
    submitted_at: i64,
    updated_at: i64,
    tasks: &[TaskRow],
) -> DeploymentView {
    let phase = Phase::overall(tasks.iter().map(|t| t.phase)).unwrap_or(Phase::Deleted);
    DeploymentView {
        deployment,
        version: Version(count(version)),
        phase,
        submitted_at,
        updated_at,
        tasks: tasks.iter().map(TaskRow::view).collect(),
    }
}
