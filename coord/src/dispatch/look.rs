//! Looking at a node's own tasks and comparing them with what we hold: for events that were lost,
//! and for nodes that lost what they knew.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use rhizome_model::api::TaskView;
use rhizome_model::{Code, DeploymentId, Event, Failure, NodeId, Phase, What};
use rhizome_service::clock;
use serde_json::Value;

use super::{Inner, sender};
use crate::rules::{Finding, compare};
use crate::store::TaskRow;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Up to so many tasks are asked for one by one, more as the node's whole list.
const ONE_BY_ONE: usize = 8;
const AT_ONCE: usize = 4;

pub enum Scope {
    All,
    Unsettled,
    These(Vec<DeploymentId>),
}

/// What we held before we looked, and what we saw.
pub struct Looked {
    pairs: Vec<(TaskRow, Option<TaskView>)>,
    all: bool,
    /// The node has no tasks of ours.
    pub empty: bool,
}

#[derive(Default)]
pub struct Verdict {
    /// Tasks to look at once more before anything is concluded.
    pub again: Vec<DeploymentId>,
    /// The node knows nothing of what it had: its events begin anew too.
    pub begun_anew: bool,
}

pub async fn look(inner: Arc<Inner>, node: NodeId, scope: Scope) -> Result<Looked, Failure> {
    tokio::time::timeout(ANSWER_WITHIN, look_now(&inner, node, &scope))
        .await
        .unwrap_or_else(|_| Err(Failure::new(Code::Unavailable, "its supervisor does not answer")))
}

async fn look_now(inner: &Inner, node: NodeId, scope: &Scope) -> Result<Looked, Failure> {
    // Read before asking: a task that is delivered here was known there.
    let rows = inner.store.tasks_on(node).await?;
    let empty = rows.is_empty();
    let wanted: Vec<_> = rows
        .into_iter()
        .filter(|row| row.delivered)
        .filter(|row| match scope {
            Scope::All => true,
            Scope::Unsettled => !row.phase.is_settled(),
            Scope::These(ids) => ids.contains(&row.key.deployment),
        })
        .collect();
    let client = &inner.nodes.supervisor(node).await?.ours;
    let pairs = if wanted.is_empty() {
        // Whether the node is there is worth knowing all the same.
        client.get::<Value>("/healthz").await?;
        Vec::new()
    } else if wanted.len() <= ONE_BY_ONE {
        stream::iter(wanted)
            .map(|row| async move {
                let path = format!("/v1/tasks/{}", row.key.deployment);
                match client.get::<TaskView>(&path).await {
                    Ok(view) => Ok((row, Some(view))),
                    Err(failure) if failure.code == Code::NotFound => Ok((row, None)),
                    Err(failure) => Err(failure),
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?
    } else {
        let views: Vec<TaskView> = client.get("/v1/tasks").await?;
        let mut views: HashMap<_, _> =
            views.into_iter().map(|v| (v.deployment.clone(), v)).collect();
        wanted
            .into_iter()
            .map(|row| {
                let view = views.remove(&row.key.deployment);
                (row, view)
            })
            .collect()
    };
    Ok(Looked { pairs, all: matches!(scope, Scope::All), empty })
}

pub async fn judge(
    inner: &Arc<Inner>,
    node: NodeId,
    looked: Looked,
    suspects: &mut BTreeMap<DeploymentId, i64>,
) -> Result<Verdict, Failure> {
    let mut verdict = Verdict::default();
    let mut lost = false;
    let nothing_known = looked.pairs.iter().all(|(_, view)| view.is_none());
    for (row, view) in looked.pairs {
        // A node that answers for another one answers nothing.
        if view.as_ref().is_some_and(|v| v.node != node) {
            let message = "at its address another node answers";
            return Err(Failure::new(Code::Unavailable, message));
        }
        let id = row.key.deployment.clone();
        let finding = compare(&row.held(), view.as_ref());
        // What an event may still tell is believed when it stays so for two looks.
        if matches!(finding, Finding::Moved | Finding::Gone)
            && suspects.insert(id.clone(), row.updated_at) != Some(row.updated_at)
        {
            verdict.again.push(id);
            continue;
        }
        suspects.remove(&id);
        lost |= act(inner, &row, view.as_ref(), finding).await?;
    }
    verdict.begun_anew = looked.all && nothing_known && lost;
    Ok(verdict)
}

/// Says whether the node lost the task.
async fn act(
    inner: &Arc<Inner>,
    row: &TaskRow,
    view: Option<&TaskView>,
    finding: Finding,
) -> Result<bool, Failure> {
    let (deployment, node) = (&row.key.deployment, row.key.node);
    match finding {
        Finding::Same => {}
        Finding::Moved => {
            if let Some(view) = view {
                inner.store.found(row, phase_event(row, view)).await?;
            }
        }
        Finding::Gone => {
            let what = What::Phase { phase: Phase::Deleted, failure: None, outputs: None };
            inner.store.found(row, event(row, what)).await?;
        }
        Finding::Lost => {
            tracing::warn!(%deployment, %node, "a node lost a task; it is sent again");
            if inner.store.lost(row, clock::now_ms()).await? {
                inner.send(row.key.clone(), None);
            }
            return Ok(true);
        }
        Finding::LostGood(digest) => {
            tracing::warn!(%deployment, %node, "a node lost the version that it had; it is sent again");
            if let Some(bytes) = inner.store.envelope(&digest).await? {
                restore(inner.clone(), node, bytes);
            }
        }
    }
    if let Some(view) = view.filter(|v| v.version == row.version) {
        inner.store.seen(view).await?;
    }
    Ok(false)
}

/// Beside the stream: a node that is slow to plan must not hold up its events. If it fails, the
/// next look finds the task missing again.
fn restore(inner: Arc<Inner>, node: NodeId, bytes: Vec<u8>) {
    let work = inner.clone();
    inner.spawn(async move {
        match sender::send(&work, node, &bytes, false).await {
            sender::Sent::Taken(_) | sender::Sent::Gone => {}
            sender::Sent::Refused(failure) | sender::Sent::Later(failure) => {
                tracing::warn!(%node, error = %failure, "a node did not take what it had lost");
            }
        }
    });
}

fn phase_event(row: &TaskRow, view: &TaskView) -> Event {
    let outputs = (view.phase == Phase::Ready)
        .then(|| Value::Object(view.outputs.clone().into_iter().collect()));
    event(row, What::Phase { phase: view.phase, failure: view.failure.clone(), outputs })
}

fn event(row: &TaskRow, what: What) -> Event {
    Event {
        at: clock::now_ms(),
        deployment: row.key.deployment.clone(),
        version: row.version,
        node: Some(row.key.node),
        what,
    }
}
