//! How far a submission is: each of its tasks, until all are where they shall be or cannot get there.

use std::collections::BTreeMap;

use rhizome_model::api::{DeploymentView, Submitted};
use rhizome_model::{Event, Failure, NodeId, Phase, Version, What};
use serde_json::Value;

/// What a submission is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Each task ready, or refused or failed.
    Deployed,
    /// Each task gone.
    Deleted,
}

/// What is known of one task.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Known {
    pub phase: Option<Phase>,
    pub failure: Option<Failure>,
    pub outputs: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub version: Version,
    pub goal: Goal,
    pub tasks: BTreeMap<NodeId, Known>,
}

/// What an event means to somebody who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is about another version, or changes nothing for the one that waits.
    Nothing,
    /// A task went on.
    Task,
    /// coord said something about the whole: its view knows more.
    Whole,
}

impl Progress {
    pub fn new(submitted: &Submitted, goal: Goal) -> Self {
        let tasks = submitted.nodes.iter().map(|node| (*node, Known::default())).collect();
        Self { version: submitted.version, goal, tasks }
    }

    pub fn apply(&mut self, event: &Event) -> Heard {
        let What::Phase { phase, failure, outputs } = &event.what else {
            return Heard::Nothing;
        };
        if event.version != self.version {
            // A newer version: this one will hear nothing more.
            return if event.version > self.version { Heard::Whole } else { Heard::Nothing };
        }
        let Some(node) = event.node else {
            // That it begins is no news to the one who began it.
            return if phase.is_settled() { Heard::Whole } else { Heard::Nothing };
        };
        let known = self.tasks.entry(node).or_default();
        known.phase = Some(*phase);
        known.failure.clone_from(failure);
        if let Some(Value::Object(outputs)) = outputs {
            known.outputs = outputs.clone().into_iter().collect();
        }
        Heard::Task
    }

    /// Takes over what coord's view says. False when the deployment went on to another version.
    pub fn adopt(&mut self, view: &DeploymentView) -> bool {
        for task in view.tasks.iter().filter(|t| t.version == self.version) {
            let known = self.tasks.entry(task.node).or_default();
            // An event can be ahead of the view, not the other way round for long.
            if !known.is_over(self.goal) {
                known.phase = Some(task.phase);
                known.failure.clone_from(&task.failure);
                known.outputs.clone_from(&task.outputs);
            }
        }
        view.version == self.version || self.is_settled()
    }

    pub fn is_settled(&self) -> bool {
        self.tasks.values().all(|task| task.is_over(self.goal))
    }

    /// The phase of the whole.
    pub fn phase(&self) -> Phase {
        let nothing = match self.goal {
            Goal::Deployed => Phase::Ready,
            Goal::Deleted => Phase::Deleted,
        };
        let phases = self.tasks.values().map(|t| t.phase.unwrap_or(Phase::Pending));
        Phase::overall(phases).unwrap_or(nothing)
    }

    /// Why the whole is not as it should be: the failure of the first task in the whole's phase.
    pub fn failure(&self) -> Option<&Failure> {
        let phase = self.phase();
        let in_phase = self.tasks.values().find(|t| t.phase == Some(phase) && t.failure.is_some());
        in_phase.and_then(|t| t.failure.as_ref())
    }

    /// What the script said with `output(…)`; where nodes differ, the first node's word counts.
    pub fn outputs(&self) -> BTreeMap<String, Value> {
        let all = self.tasks.values().rev().flat_map(|t| t.outputs.clone());
        all.collect()
    }
}

impl Known {
    /// Reached, or missed for good.
    fn is_over(&self, goal: Goal) -> bool {
        match (goal, self.phase) {
            (_, None) => false,
            (Goal::Deployed, Some(phase)) => phase.is_settled(),
            // A node that refuses a delete waits for one that is signed anew.
            (Goal::Deleted, Some(Phase::Deleting)) => self.failure.is_some(),
            (Goal::Deleted, Some(phase)) => phase == Phase::Deleted,
        }
    }
}

impl Goal {
    pub fn is_reached(self, phase: Phase) -> bool {
        match self {
            Self::Deployed => phase == Phase::Ready,
            Self::Deleted => phase == Phase::Deleted,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rhizome_model::Code;
    use serde_json::json;

    use super::*;

    fn submitted(nodes: &[u64]) -> Submitted {
        Submitted {
            deployment: "1/demo".parse().unwrap(),
            version: Version(2),
            phase: Phase::Pending,
            nodes: nodes.iter().copied().map(NodeId).collect(),
            after: 0,
        }
    }

    fn event(node: Option<u64>, version: u64, phase: Phase) -> Event {
        Event {
            at: 0,
            deployment: "1/demo".parse().unwrap(),
            version: Version(version),
            node: node.map(NodeId),
            what: What::Phase { phase, failure: None, outputs: None },
        }
    }

    #[test]
    fn it_is_settled_when_every_task_is() {
        let mut progress = Progress::new(&submitted(&[1, 2]), Goal::Deployed);
        assert_eq!(progress.apply(&event(Some(1), 2, Phase::Ready)), Heard::Task);
        assert!(!progress.is_settled());
        assert_eq!(progress.apply(&event(Some(2), 1, Phase::Ready)), Heard::Nothing);
        assert!(!progress.is_settled(), "the version before does not count");
        progress.apply(&event(Some(2), 2, Phase::Failed));
        assert!(progress.is_settled());
        assert_eq!(progress.phase(), Phase::Failed);
    }

    #[test]
    fn a_delete_waits_until_it_is_gone() {
        let mut progress = Progress::new(&submitted(&[1]), Goal::Deleted);
        progress.apply(&event(Some(1), 2, Phase::Ready));
        assert!(!progress.is_settled(), "a late word of the deployment itself");
        progress.apply(&event(Some(1), 2, Phase::Deleted));
        assert!(progress.is_settled() && progress.goal.is_reached(progress.phase()));
    }

    #[test]
    fn a_delete_that_a_node_refuses_is_over() {
        let mut progress = Progress::new(&submitted(&[1]), Goal::Deleted);
        progress.apply(&event(Some(1), 2, Phase::Deleting));
        assert!(!progress.is_settled());
        let failure = Failure::new(Code::Expired, "too late");
        let mut refused = event(Some(1), 2, Phase::Deleting);
        refused.what =
            What::Phase { phase: Phase::Deleting, failure: Some(failure.clone()), outputs: None };
        progress.apply(&refused);
        assert!(progress.is_settled() && progress.failure() == Some(&failure));
        assert!(!progress.goal.is_reached(progress.phase()));
    }

    #[test]
    fn what_coord_says_of_the_whole_asks_for_a_look() {
        let mut progress = Progress::new(&submitted(&[1]), Goal::Deployed);
        assert_eq!(progress.apply(&event(None, 2, Phase::Pending)), Heard::Nothing);
        assert_eq!(progress.apply(&event(None, 2, Phase::Failed)), Heard::Whole);
        assert_eq!(progress.apply(&event(Some(1), 3, Phase::Pending)), Heard::Whole);
    }

    #[test]
    fn failure_and_outputs_of_the_whole() {
        let mut progress = Progress::new(&submitted(&[1, 2]), Goal::Deployed);
        let mut ready = event(Some(1), 2, Phase::Ready);
        ready.what = What::Phase {
            phase: Phase::Ready,
            failure: None,
            outputs: Some(json!({ "url": "one" })),
        };
        progress.apply(&ready);
        let failure = Failure::new(Code::InsufficientCapacity, "too big");
        let mut refused = event(Some(2), 2, Phase::Refused);
        refused.what = What::Phase {
            phase: Phase::Refused,
            failure: Some(failure.clone()),
            outputs: Some(json!({ "url": "two" })),
        };
        progress.apply(&refused);
        assert_eq!((progress.phase(), progress.failure()), (Phase::Refused, Some(&failure)));
        assert_eq!(progress.outputs()["url"], "one");
    }

    proptest! {
        #[test]
        fn a_settled_whole_has_a_settled_phase(ends in proptest::collection::vec(0..Phase::ALL.len(), 1..5)) {
            let nodes: Vec<u64> = (1..=ends.len() as u64).collect();
            let mut progress = Progress::new(&submitted(&nodes), Goal::Deployed);
            for (node, end) in nodes.iter().zip(ends) {
                progress.apply(&event(Some(*node), 2, Phase::ALL[end]));
            }
            prop_assert_eq!(progress.is_settled(), progress.phase().is_settled());
        }
    }
}
