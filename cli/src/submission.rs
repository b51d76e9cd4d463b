//! Handing an envelope over and seeing it through: what `deploy`, `delete` and `submit` have in
//! common.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rhizome_model::api::{DeploymentView, Submitted};
use rhizome_model::{
    Class, DeploymentId, Failure, JobId, Name, NodeId, Phase, TraceId, Version, WorkloadKind,
};
use serde::Serialize;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::coord::Coord;
use crate::error::{Error, internal};
use crate::follow::{Ended, follow};
use crate::output;
use crate::progress::{Goal, Progress};
use crate::render::reporter::Reporter;
use crate::render::{event, value};

/// 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// What is printed with `--json` (docs/json.md).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub deployment: DeploymentId,
    pub version: Version,
    pub phase: Phase,
    pub outputs: BTreeMap<String, Value>,
    pub nodes: Vec<NodeSummary>,
    pub resources: Vec<ResourceSummary>,
    pub duration_ms: u64,
    /// The job that evaluates the script, for `rhizome job`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// W3C trace id of all that the envelope leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceId>,
    /// `error`, `code` and what else a failure has.
    #[serde(flatten)]
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeSummary {
    pub node: NodeId,
    pub phase: Phase,
    pub outputs: BTreeMap<String, Value>,
    #[serde(flatten)]
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResourceSummary {
    pub node: NodeId,
    pub name: Name,
    pub kind: WorkloadKind,
    pub status: Option<Value>,
}

/// What was submitted, when we began, and what is shown.
pub struct Submission {
    pub submitted: Submitted,
    pub goal: Goal,
    pub begun: Instant,
    pub json: bool,
    pub trace: Option<TraceId>,
}

impl Submission {
    /// Nobody waits: says that coord holds it.
    pub fn detach(&self) -> ExitCode {
        let mut progress = Progress::new(&self.submitted, self.goal);
        for task in progress.tasks.values_mut() {
            task.phase = Some(self.submitted.phase);
        }
        if self.json {
            let summary = Summary { phase: self.submitted.phase, ..self.summary(&progress, None) };
            output::json(&summary);
        } else {
            let Submitted { deployment, version, phase, .. } = &self.submitted;
            output::line(format!("{deployment} version {version}: {phase}"));
        }
        ExitCode::SUCCESS
    }

    /// Waits for the end, or for Ctrl-C.
    pub async fn watch(&self, coord: &Coord) -> Result<ExitCode, Error> {
        let mut reporter = Reporter::new(self.json);
        // Listening begins here, not when it is first waited for.
        let mut interrupt = signal(SignalKind::interrupt())
            .map_err(|e| internal("cannot listen for Ctrl-C", &e))?;
        let ended = tokio::select! {
            ended = follow(coord, &self.submitted, self.goal, &mut reporter) => Some(ended?),
            _ = interrupt.recv() => None,
        };
        let Some(ended) = ended else {
            reporter.done();
            let id = &self.submitted.deployment;
            output::note(format!(
                "{id} goes on without us; follow it with: rhizome events {id} -f"
            ));
            return Ok(ExitCode::from(INTERRUPTED));
        };
        Ok(ExitCode::from(self.report(&ended)))
    }

    fn report(&self, ended: &Ended) -> u8 {
        let summary = self.summary(&ended.progress, Some(&ended.view));
        let exit = exit_code(self.goal, summary.phase, summary.failure.as_ref());
        if self.json {
            output::json(&summary);
            return exit;
        }
        let Summary { deployment, version, phase, duration_ms, .. } = &summary;
        let took = crate::render::duration(*duration_ms);
        output::line(format!("{deployment} version {version}: {phase} after {took}"));
        for (key, said) in &summary.outputs {
            output::line(format!("{} = {}", crate::render::clean(key), value(said)));
        }
        for node in summary.nodes.iter().filter(|_| summary.nodes.len() > 1) {
            if let Some(failure) = &node.failure {
                output::note(format!("node {}: {}", node.node, event::because(failure)));
            }
        }
        if let Some(failure) = &summary.failure {
            output::note(output::failure_text(failure));
        }
        exit
    }

    fn summary(&self, progress: &Progress, view: Option<&DeploymentView>) -> Summary {
        let nodes = progress.tasks.iter().map(|(node, task)| NodeSummary {
            node: *node,
            phase: task.phase.unwrap_or(Phase::Pending),
            outputs: task.outputs.clone(),
            failure: task.failure.clone(),
        });
        let tasks = view.into_iter().flat_map(|v| &v.tasks);
        let resources = tasks.flat_map(|task| {
            task.resources.iter().map(|r| ResourceSummary {
                node: task.node,
                name: r.resource.name.clone(),
                kind: r.resource.kind,
                status: r.status.clone(),
            })
        });
        Summary {
            deployment: self.submitted.deployment.clone(),
            version: self.submitted.version,
            phase: progress.phase(),
            outputs: progress.outputs(),
            nodes: nodes.collect(),
            resources: resources.collect(),
            duration_ms: millis(self.begun.elapsed()),
            job: (self.goal == Goal::Deployed)
                .then(|| JobId::script(&self.submitted.deployment, self.submitted.version)),
            trace: self.trace,
            failure: progress.failure().cloned(),
        }
    }
}

/// A failure says by its code what it is; but services that were reached are not unreachable, and a
/// document that was taken is no misuse.
fn exit_code(goal: Goal, phase: Phase, failure: Option<&Failure>) -> u8 {
    if goal.is_reached(phase) {
        return 0;
    }
    let class = match failure.map(|f| f.code.class()) {
        Some(Class::Refused) => Class::Refused,
        Some(Class::Failed | Class::Misuse | Class::Unreachable) => Class::Failed,
        None if phase == Phase::Refused => Class::Refused,
        None => Class::Failed,
    };
    class.exit_code()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use rhizome_model::api::{ResourceView, TaskView};
    use rhizome_model::{Capacity, Code, DesiredResource};
    use serde_json::json;

    use super::*;

    #[test]
    fn exit_codes() {
        let failure = |code| Some(Failure::new(code, "x"));
        for (phase, failure, exit) in [
            (Phase::Ready, None, 0),
            (Phase::Failed, failure(Code::ImageNotFound), 1),
            (Phase::Failed, failure(Code::ScriptLimit), 3),
            (Phase::Failed, failure(Code::Unavailable), 1),
            (Phase::Refused, failure(Code::InsufficientCapacity), 3),
            (Phase::Refused, None, 3),
            (Phase::Deleted, None, 1),
        ] {
            assert_eq!(exit_code(Goal::Deployed, phase, failure.as_ref()), exit, "{phase}");
        }
        assert_eq!(exit_code(Goal::Deleted, Phase::Deleted, None), 0);
    }

    #[test]
    fn the_summary_is_stable() {
        let submitted = Submitted {
            deployment: "1/demo".parse().unwrap(),
            version: Version(3),
            phase: Phase::Pending,
            nodes: vec![NodeId(1)],
            after: 0,
        };
        let task = TaskView {
            deployment: "1/demo".parse().unwrap(),
            version: Version(3),
            node: NodeId(1),
            phase: Phase::Failed,
            failure: Some(Failure::new(Code::ImageCorrupt, "not a tar archive")),
            outputs: BTreeMap::from([("url".to_owned(), json!("http://x"))]),
            resources: vec![ResourceView {
                resource: DesiredResource {
                    name: "data".parse().unwrap(),
                    kind: WorkloadKind::Volume,
                    spec: json!({}),
                    line: 1,
                },
                status: Some(json!({ "path": "/x" })),
            }],
            reserved: Capacity::default(),
            waiting_for: None,
        };
        let view = DeploymentView {
            deployment: "1/demo".parse().unwrap(),
            version: Version(3),
            phase: Phase::Failed,
            submitted_at: 0,
            updated_at: 0,
            tasks: vec![task],
        };
        let begun = Instant::now();
        let submission =
            Submission { submitted, goal: Goal::Deployed, begun, json: true, trace: None };
        let mut progress = Progress::new(&submission.submitted, Goal::Deployed);
        assert!(progress.adopt(&view) && progress.is_settled());
        let summary = Summary { duration_ms: 42, ..submission.summary(&progress, Some(&view)) };
        insta::assert_snapshot!(serde_json::to_string_pretty(&summary).unwrap());
    }
}
