//! The journal of a script: what it did, by the number of its effect, and how that ended.
//!
//! An effect is written down before anything is done for it. An evaluation that repeats another one
//! finds there what it asks for, in the same order, or it is not the same evaluation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Action, Code, DesiredResource, Failure, Name, NodeFacts, Outcome};

/// What a script does to the world, in the order of the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "snake_case")]
pub enum Effect {
    Declare { resource: DesiredResource },
    Act { resource: Name, action: Action },
    Log { message: String },
}

/// One effect, as an attempt began it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The attempt that began it, by the lease that it held.
    pub by: String,
    /// Unix milliseconds.
    pub at: i64,
    #[serde(flatten)]
    pub effect: Effect,
}

/// What a node knows of the script of one version.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Journal {
    /// What the first attempt saw as `node`: later ones see the same.
    pub facts: Option<NodeFacts>,
    pub steps: BTreeMap<u64, Step>,
    pub results: BTreeMap<u64, Ended>,
}

/// How an effect ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The attempt that ended it, by the lease that it held; none when it never began.
    pub by: Option<String>,
    pub outcome: Outcome,
}

impl Effect {
    /// In a few words.
    fn words(&self) -> String {
        match self {
            Self::Declare { resource } => {
                let DesiredResource { kind, name, line, .. } = resource;
                format!("declares {kind} '{name}' in line {line}")
            }
            Self::Act { resource, action } => {
                let action = serde_json::to_value(action).unwrap_or_default();
                format!(
                    "does {} with '{resource}'",
                    action["action"].as_str().unwrap_or("something")
                )
            }
            Self::Log { message } => {
                let start: String = message.chars().take(40).collect();
                format!("logs \"{start}\"")
            }
        }
    }

    /// Whether an earlier attempt did the same. Where it stands in the script does not count.
    fn is_as(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::Declare { resource: now }, Self::Declare { resource: then }) => {
                (&now.name, now.kind, &now.spec) == (&then.name, then.kind, &then.spec)
            }
            _ => self == before,
        }
    }
}

impl Journal {
    /// What an earlier attempt did as its effect of this number, if it came that far. Fails when
    /// that was something else.
    pub fn replay(&self, call: u64, effect: &Effect) -> Result<Option<&Step>, Failure> {
        let Some(step) = self.steps.get(&call) else { return Ok(None) };
        if effect.is_as(&step.effect) {
            return Ok(Some(step));
        }
        let message = format!(
            "effect {call}: the journal says that the script {}, but now it {}",
            step.effect.words(),
            match (&step.effect, effect) {
                (Effect::Declare { resource: then }, Effect::Declare { resource: now })
                    if (&then.name, then.kind) == (&now.name, now.kind) =>
                    format!("{} with another spec", effect.words()),
                _ => effect.words(),
            }
        );
        Err(Failure::new(Code::NondeterministicScript, message))
    }

    /// What it declared, in order, with the sizes that it has given since.
    pub fn declared(&self) -> Vec<DesiredResource> {
        let mut declared: Vec<DesiredResource> = Vec::new();
        for (call, step) in &self.steps {
            match &step.effect {
                Effect::Declare { resource } => declared.push(resource.clone()),
                Effect::Act { resource, action: Action::Resize { to } } => {
                    let end = self.results.get(call).map(|ended| &ended.outcome);
                    let done = matches!(end, Some(Outcome::Succeeded(_)));
                    let of = |r: &&mut DesiredResource| done && &r.name == resource;
                    for resized in declared.iter_mut().filter(of) {
                        // Done with this spec, it was a good one.
                        if let Ok(spec) = resized.kind.resized(&resized.spec, to) {
                            resized.spec = spec;
                        }
                    }
                }
                Effect::Act { .. } | Effect::Log { .. } => {}
            }
        }
        declared
    }

    /// Whether it has resized anything.
    pub fn resizes(&self) -> bool {
        self.steps.values().any(|step| step.effect.resizes())
    }
}

impl Effect {
    pub fn resizes(&self) -> bool {
        matches!(self, Self::Act { action: Action::Resize { .. }, .. })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::WorkloadKind;

    fn declare(name: &str, size: u64, line: usize) -> Effect {
        let name = name.parse().unwrap();
        let spec = json!({ "size": size });
        Effect::Declare {
            resource: DesiredResource { name, kind: WorkloadKind::ALL[0], spec, line },
        }
    }

    #[test]
    fn a_replay_finds_the_same_or_says_what_differs() {
        let step = |effect| Step { by: "1-0".into(), at: 1, effect };
        let log = Effect::Log { message: "hello".into() };
        let steps = [(0, step(declare("a", 1, 3))), (1, step(log.clone()))];
        let journal = Journal { steps: steps.into(), ..Journal::default() };
        assert!(
            journal.replay(0, &declare("a", 1, 4)).unwrap().is_some(),
            "another line is no change"
        );
        assert!(journal.replay(2, &log).unwrap().is_none());
        let cases = [
            (0, declare("a", 2, 4), "declares volume 'a' in line 4 with another spec"),
            (0, log, "logs \"hello\""),
            (1, declare("b", 1, 9), "logs \"hello\", but now it declares volume 'b' in line 9"),
        ];
        for (call, effect, words) in cases {
            let failure = journal.replay(call, &effect).unwrap_err();
            assert_eq!(failure.code, Code::NondeterministicScript);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
        assert_eq!(journal.declared().len(), 1);
    }

    #[test]
    fn what_was_resized_is_declared_as_it_is_now() {
        let step = |effect| Step { by: "1-0".into(), at: 1, effect };
        let resize = |mib: u64| {
            let to = json!({ "size": mib << 20 }).as_object().cloned().unwrap();
            let resource = "a".parse().unwrap();
            step(Effect::Act { resource, action: Action::Resize { to } })
        };
        let steps = [(0, step(declare("a", 1 << 20, 3))), (1, resize(2)), (2, resize(4))];
        let mut journal = Journal { steps: steps.into(), ..Journal::default() };
        let size = |journal: &Journal| journal.declared()[0].spec["size"].as_u64().unwrap() >> 20;
        assert!(journal.resizes());
        assert_eq!(size(&journal), 1, "none has ended yet");
        let ended = |outcome| Ended { by: Some("2-0".into()), outcome };
        journal.results.insert(1, ended(Outcome::Succeeded(json!({}))));
        let failure = Failure::new(Code::InsufficientCapacity, "full");
        journal.results.insert(2, ended(Outcome::Failed(failure)));
        assert_eq!(size(&journal), 2);
    }

    #[test]
    fn a_step_reads_back() {
        let effect = Effect::Act { resource: "a".parse().unwrap(), action: Action::Wait };
        let step = Step { by: "1-0".into(), at: 5, effect };
        let json = serde_json::to_string(&step).unwrap();
        assert_eq!(serde_json::from_str::<Step>(&json).unwrap(), step);
    }
}
