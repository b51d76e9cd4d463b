//! A task's row, and how it is shown.

use std::collections::BTreeMap;

use rhizome_model::api::{ResourceView, TaskView};
use rhizome_model::{AccountId, Capacity, DeploymentId, Failure, IdError, NodeId, Phase, Version};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Result, StoreError, TaskKey, count};
use crate::rules::Held;

/// What is kept of the node's own view: the parts that events do not carry.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
pub(super) struct SeenView {
    pub version: Option<Version>,
    pub resources: Vec<ResourceView>,
    pub reserved: Capacity,
    pub waiting_for: Option<String>,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct RawTask {
    account: i64,
    name: String,
    node: i64,
    version: i64,
    phase: String,
    envelope: String,
    delivered: bool,
    holds: bool,
    good: Option<String>,
    failure: Option<String>,
    outputs: Option<String>,
    view: Option<String>,
    waiting_for: Option<String>,
    updated_at: i64,
}

/// One deployment on one node, as coord holds it.
#[derive(Debug, Clone)]
pub struct TaskRow {
    pub key: TaskKey,
    pub version: Version,
    pub phase: Phase,
    pub envelope: String,
    pub delivered: bool,
    pub holds: bool,
    pub good: Option<String>,
    pub failure: Option<Failure>,
    pub outputs: BTreeMap<String, Value>,
    pub waiting_for: Option<String>,
    pub updated_at: i64,
    seen: SeenView,
}

impl TaskRow {
    pub fn held(&self) -> Held {
        Held {
            version: self.version,
            phase: self.phase,
            delivered: self.delivered,
            good: self.good.clone(),
        }
    }

    pub fn view(&self) -> TaskView {
        TaskView {
            deployment: self.key.deployment.clone(),
            version: self.version,
            node: self.key.node,
            phase: self.phase,
            failure: self.failure.clone(),
            outputs: self.outputs.clone(),
            resources: self.seen.resources.clone(),
            reserved: self.seen.reserved,
            waiting_for: self.waiting_for.clone().or_else(|| self.seen_waiting()),
        }
    }

    /// What the node waits for counts while the task is under way there.
    fn seen_waiting(&self) -> Option<String> {
        let current = self.seen.version == Some(self.version) && !self.phase.is_settled();
        self.seen.waiting_for.clone().filter(|_| current)
    }
}

impl TryFrom<RawTask> for TaskRow {
    type Error = StoreError;

    fn try_from(raw: RawTask) -> Result<Self> {
        let deployment = deployment_id(raw.account, &raw.name)?;
        Ok(Self {
            key: TaskKey { deployment, node: NodeId(count(raw.node)) },
            version: Version(count(raw.version)),
            phase: serde_json::from_value(Value::String(raw.phase))?,
            envelope: raw.envelope,
            delivered: raw.delivered,
            holds: raw.holds,
            good: raw.good,
            failure: raw.failure.as_deref().map(serde_json::from_str).transpose()?,
            outputs: raw
                .outputs
                .as_deref()
                .map(serde_json::from_str)
                .transpose()?
                .unwrap_or_default(),
            seen: raw.view.as_deref().map(serde_json::from_str).transpose()?.unwrap_or_default(),
            waiting_for: raw.waiting_for,
            updated_at: raw.updated_at,
        })
    }
}

pub(super) fn deployment_id(account: i64, name: &str) -> Result<DeploymentId> {
    let name = name
        .parse()
        .map_err(|e: IdError| StoreError::Json(serde::de::Error::custom(e.to_string())))?;
    Ok(DeploymentId { account: AccountId(count(account)), name })
}

pub(super) fn seen_view(view: &TaskView) -> Result<String> {
    let seen = SeenView {
        version: Some(view.version),
        resources: view.resources.clone(),
        reserved: view.reserved,
        waiting_for: view.waiting_for.clone(),
    };
    Ok(serde_json::to_string(&seen)?)
}
