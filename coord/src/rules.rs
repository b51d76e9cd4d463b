//! Decisions without doing: what may be submitted, where a phase may move, what a look at a node
//! means, which nodes get a placement. Pure.

use std::collections::BTreeSet;

use rhizome_model::api::{NodeView, TaskView};
use rhizome_model::{
    Code, DeleteDocument, DeploymentDocument, DeploymentId, Document, Failure, Move, NodeId, Phase,
    Version,
};

/// A deployment as it is when something about it is submitted.
#[derive(Debug, Clone)]
pub struct Current {
    pub version: Version,
    pub tasks: Vec<CurrentTask>,
}

#[derive(Debug, Clone, Copy)]
pub struct CurrentTask {
    pub node: NodeId,
    pub phase: Phase,
    /// Whether anything of the deployment may be on the node.
    pub holds: bool,
}

/// Whether a document may change what is there.
pub fn admit(document: &Document, current: Option<&Current>) -> Result<(), Failure> {
    let id = document.deployment_id();
    match document {
        Document::Deployment(d) => admit_deployment(&id, d, current),
        Document::Delete(d) => admit_delete(&id, d, current),
        Document::Operation(_) => Err(no_operation()),
    }
}

/// Operations are their node's: none is stored here.
pub fn no_operation() -> Failure {
    Failure::new(Code::Internal, "an operation changes no deployment")
}

fn admit_deployment(
    id: &DeploymentId,
    document: &DeploymentDocument,
    current: Option<&Current>,
) -> Result<(), Failure> {
    let Some(current) = current else { return Ok(()) };
    let newest = current.version;
    if document.version <= newest {
        let next = newest.0.saturating_add(1);
        let message =
            format!("{id} is at version {newest} already; sign this as version {next} or later");
        return Err(Failure::new(Code::StaleVersion, message));
    }
    if let Some(task) = current.tasks.iter().find(|t| !t.phase.is_settled()) {
        let message = format!(
            "version {newest} of {id} is still {} on node {}; wait until it has settled, or delete it",
            task.phase, task.node
        );
        return Err(Failure::new(Code::Conflict, message));
    }
    let named: BTreeSet<_> = document.placement.nodes.iter().collect();
    if let Some(task) = current.tasks.iter().find(|t| t.holds && !named.contains(&t.node)) {
        // A node would go on running what nobody could see any more.
        let message = format!(
            "node {node} holds version {newest} of {id} and version {} does not name that node; \
             keep node {node} in the placement or delete {id} first",
            document.version,
            node = task.node
        );
        return Err(Failure::new(Code::Conflict, message));
    }
    Ok(())
}

fn admit_delete(
    id: &DeploymentId,
    document: &DeleteDocument,
    current: Option<&Current>,
) -> Result<(), Failure> {
    let alive = current.filter(|c| c.tasks.iter().any(|t| t.phase != Phase::Deleted));
    let Some(current) = alive else {
        return Err(Failure::new(Code::NotFound, format!("there is no deployment {id}")));
    };
    if document.version == current.version {
        Ok(())
    } else {
        let message = format!(
            "{id} is at version {}, and version {} is not that; sign the delete of version {}",
            current.version, document.version, current.version
        );
        Err(Failure::new(Code::StaleVersion, message))
    }
}

/// The moves that a node makes by itself, or on a delete that reached it on another way than ours.
const NODES_MOVES: [Move; 8] = [
    Move::Accept,
    Move::Refuse,
    Move::Start,
    Move::Succeed,
    Move::Fail,
    Move::Stick,
    Move::Delete,
    Move::Gone,
];

/// Whether a node that we hold for `from` can have come to `to`: by one step, or by several of
/// which we saw only the last. Being there already is no move.
pub fn moves(from: Phase, to: Phase) -> bool {
    // These moves make no circle, so the search ends.
    NODES_MOVES
        .iter()
        .filter_map(|step| from.step(*step).ok())
        .any(|next| next == to || moves(next, to))
}

/// What coord holds of a task when it looks at the node.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub version: Version,
    pub phase: Phase,
    pub delivered: bool,
    /// The envelope of a version that was ready there.
    pub good: Option<String>,
}

/// What a look at the node's own task says.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// All is as we hold it, or will become so by events.
    Same,
    /// The node is further than the events that we saw.
    Moved,
    /// The node does not know what it had accepted: it gets the envelope again.
    Lost,
    /// The node lost the version before the one that failed: it gets that one again.
    LostGood(String),
    /// What was being deleted is gone.
    Gone,
}

pub fn compare(held: &Held, seen: Option<&TaskView>) -> Finding {
    if !held.delivered || held.phase == Phase::Deleted {
        return Finding::Same;
    }
    let lost = || match held.phase {
        Phase::Deleting => Finding::Gone,
        Phase::Failed | Phase::Refused => {
            held.good.clone().map_or(Finding::Same, Finding::LostGood)
        }
        Phase::Pending | Phase::Accepted | Phase::Running | Phase::RollbackStuck | Phase::Ready => {
            Finding::Lost
        }
        Phase::Deleted => Finding::Same,
    };
    let Some(seen) = seen else { return lost() };
    if seen.version == held.version {
        if moves(held.phase, seen.phase) { Finding::Moved } else { Finding::Same }
    } else if seen.version < held.version {
        match held.phase {
            // It went back to that version, or never took ours.
            Phase::Failed | Phase::Refused => Finding::Same,
            // The delete of the newer version is still owed.
            Phase::Deleting => Finding::Lost,
            _ => lost(),
        }
    } else {
        Finding::Same
    }
}

/// The nodes with the most free memory among those that can deploy.
pub fn place(mut nodes: Vec<NodeView>, count: usize) -> Result<Vec<NodeView>, Failure> {
    if count == 0 {
        return Err(Failure::new(Code::BadRequest, "count: ask for 1 node or more"));
    }
    let all = nodes.len();
    let problems: Vec<_> = nodes
        .iter()
        .filter_map(|n| n.problem.as_ref().map(|p| format!("node {}: {p}", n.id)))
        .take(5)
        .collect();
    nodes.retain(|n| n.online && n.reachable && n.problem.is_none());
    if nodes.len() < count {
        let message = format!(
            "asked for {count} nodes; {} of {all} are online and reachable; ask for fewer, or see `rhizome nodes`",
            nodes.len()
        );
        let failure = Failure::new(Code::InsufficientCapacity, message);
        return Err(if problems.is_empty() {
            failure
        } else {
            failure.with_detail(problems.join("\n"))
        });
    }
    let free = |n: &NodeView| n.capacity.map_or(0, |c| c.free.memory.0);
    nodes.sort_by_key(|n| (std::cmp::Reverse(free(n)), n.id));
    nodes.truncate(count);
    Ok(nodes)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
