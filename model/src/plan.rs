//! What becomes of what a node has when the next version comes: a pure comparison, made by whoever
//! plans and by the node that decides, so both say the same.
//!
//! ```text
//!   desired now ─┐                    ┌─▶ rows: create, update, replace, unchanged, delete
//!   planned     ─┼─▶ Comparison::new ─┤
//!   policy      ─┘                    └─▶ what would lose its data, or has no room for it any more,
//!                                         if it holds any: `check` with what was observed
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kind::{Change, FieldChange};
use crate::secret::{mask, mask_after};
use crate::{Code, DesiredResource, Failure, Name, Policy, WorkloadKind};

/// What becomes of one resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlanRow {
    pub name: Name,
    /// As it will be; of what is deleted, as it was.
    pub kind: WorkloadKind,
    #[serde(flatten)]
    pub step: PlanStep,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum PlanStep {
    Create,
    /// In place.
    Update {
        fields: Vec<FieldChange>,
    },
    /// The old one goes, with what it holds.
    Replace {
        /// The old one's kind.
        was: WorkloadKind,
        fields: Vec<FieldChange>,
        reason: String,
    },
    Delete {
        reason: String,
    },
    Unchanged,
}

/// What a version would do to what a node has.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// In the order of declaration; then what is deleted, in the order in which it goes.
    pub rows: Vec<PlanRow>,
    /// What would go although it can hold data and the policy does not name it, by name.
    pub at_risk: Vec<DesiredResource>,
    /// What would shrink in place: as it is, and as it would be.
    pub shrinking: Vec<(DesiredResource, DesiredResource)>,
}

/// The status of resources by name, null where there is nothing of one. One that is not here could not
/// be found out.
pub type Observed = BTreeMap<Name, Value>;

impl Comparison {
    /// `unseen` is the source of a script whose plan ended before the script did. What such a plan
    /// has not seen declared may still be: it has no row, and its data counts as at risk only where
    /// the source does not even have its name. Whoever deletes has a last look.
    pub fn new(
        desired: &[DesiredResource],
        planned: &[DesiredResource],
        unseen: Option<&str>,
        policy: &Policy,
    ) -> Result<Self, Failure> {
        let mut left: BTreeMap<&Name, &DesiredResource> =
            desired.iter().map(|r| (&r.name, r)).collect();
        let mut rows = Vec::with_capacity(planned.len());
        let (mut lost, mut shrinking) = (Vec::new(), Vec::new());
        for new in planned {
            let old = left.remove(&new.name);
            let step = step(old, new)?;
            if let (PlanStep::Replace { .. }, Some(old)) = (&step, old) {
                lost.push(old);
            }
            if let (PlanStep::Update { .. }, Some(old)) = (&step, old)
                && new.kind.shrinks(&old.spec, &new.spec)?
            {
                shrinking.push((old.clone(), new.clone()));
            }
            rows.push(PlanRow { name: new.name.clone(), kind: new.kind, step });
        }
        let gone = || desired.iter().rev().filter(|r| left.contains_key(&r.name));
        lost.extend(gone().filter(|r| unseen.is_none_or(|source| !names(source, &r.name))));
        if unseen.is_none() {
            let reason = "the script no longer declares it";
            rows.extend(gone().map(|r| PlanRow {
                name: r.name.clone(),
                kind: r.kind,
                step: PlanStep::Delete { reason: reason.into() },
            }));
        }
        lost.retain(|r| r.kind.keeps_data() && !policy.allow_data_loss.contains(&r.name));
        lost.sort_by_key(|r| &r.name);
        Ok(Self { at_risk: lost.into_iter().cloned().collect(), rows, shrinking })
    }

    /// The resources on whose state it depends whether the version is taken.
    pub fn to_observe(&self) -> Vec<DesiredResource> {
        let shrinking = self.shrinking.iter().map(|(old, _)| old);
        self.at_risk.iter().chain(shrinking).cloned().collect()
    }

    /// Refuses a version that would lose data which its policy does not give up, or that shrinks what
    /// holds more. What could not be found out counts as holding data, and as small enough: whoever
    /// shrinks it looks again.
    pub fn check(&self, observed: &Observed) -> Result<(), Failure> {
        let holds = |r: &&DesiredResource| holds_data(r, observed.get(&r.name));
        let holding: Vec<Name> =
            self.at_risk.iter().filter(holds).map(|r| r.name.clone()).collect();
        Self::data_loss(&holding)?;
        let mut refused = Vec::new();
        for (old, new) in &self.shrinking {
            let Some(status) = observed.get(&old.name).filter(|s| !s.is_null()) else { continue };
            match new.kind.fits(&old.spec, &new.spec, status) {
                Err(failure) if failure.code == Code::BelowUse => {
                    refused.push(format!("'{}': {}", new.name, failure.message));
                }
                fits => fits?,
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Code::BelowUse, refused.join("; ")))
    }

    /// The refusal of a version that would lose the data of these; none when there are none.
    pub fn data_loss(holding: &[Name]) -> Result<(), Failure> {
        let names: Vec<_> = holding.iter().map(Name::as_str).collect();
        let them = match names.as_slice() {
            [] => return Ok(()),
            [_] => "it",
            _ => "them",
        };
        let flags: Vec<_> = names.iter().map(|name| format!("--allow-data-loss {name}")).collect();
        let message = format!(
            "this version deletes or replaces what holds data: {}; declare {them} (where the script \
             waits for something, before that), or put \"allow_data_loss\": {names:?} into the \
             policy ({})",
            names.join(", "),
            flags.join(" ")
        );
        Err(Failure::new(Code::DataLoss, message))
    }
}

fn holds_data(resource: &DesiredResource, status: Option<&Value>) -> bool {
    match status {
        Some(Value::Null) => false,
        Some(status) => resource.kind.holds_data(status).unwrap_or(true),
        None => true,
    }
}

/// Whether a script has a name as a text of its own.
fn names(source: &str, name: &Name) -> bool {
    ['"', '`'].iter().any(|quote| source.contains(&format!("{quote}{name}{quote}")))
}

impl PlanStep {
    /// Whether something is done.
    pub fn changes(&self) -> bool {
        match self {
            Self::Create | Self::Update { .. } | Self::Replace { .. } | Self::Delete { .. } => true,
            Self::Unchanged => false,
        }
    }
}

fn step(old: Option<&DesiredResource>, new: &DesiredResource) -> Result<PlanStep, Failure> {
    let Some(old) = old else { return Ok(PlanStep::Create) };
    if old.kind != new.kind {
        let reason = format!("a {} cannot become a {}", old.kind, new.kind);
        return Ok(PlanStep::Replace { was: old.kind, fields: Vec::new(), reason });
    }
    let (before, after) = (mask(&old.spec), mask_after(&new.spec, &old.spec));
    Ok(match new.kind.change(&before, &after)? {
        Change::None => PlanStep::Unchanged,
        Change::Update(fields) => PlanStep::Update { fields },
        Change::Replace { fields, reason } => PlanStep::Replace { was: old.kind, fields, reason },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secret::secret_token;

    fn resource(kind: WorkloadKind, name: &str, spec: Value) -> DesiredResource {
        let spec = kind.parse_spec(spec).unwrap();
        DesiredResource { name: name.parse().unwrap(), kind, spec, line: 1 }
    }

    fn volume(name: &str, mib: u64) -> DesiredResource {
        resource(WorkloadKind::Volume, name, json!({ "size": mib << 20 }))
    }

    fn machine(name: &str, more: &str) -> DesiredResource {
        resource(WorkloadKind::Machine, name, json!({ "image": "file:///a", "env": { "A": more } }))
    }

    fn compare(old: &[DesiredResource], new: &[DesiredResource]) -> Comparison {
        Comparison::new(old, new, None, &Policy::default()).unwrap()
    }

    fn words(comparison: &Comparison) -> Vec<String> {
        let word = |row: &PlanRow| {
            let step = serde_json::to_value(&row.step).unwrap();
            format!("{} {}", step["action"].as_str().unwrap(), row.name)
        };
        comparison.rows.iter().map(word).collect()
    }

    fn at_risk(comparison: &Comparison) -> Vec<&str> {
        comparison.at_risk.iter().map(|r| r.name.as_str()).collect()
    }

    #[test]
    fn every_step_once() {
        let old = [
            volume("gone", 8),
            volume("grown", 8),
            volume("turned", 8),
            machine("kept", "1"),
            machine("moved", "1"),
            machine("away", "1"),
        ];
        let new = [
            volume("grown", 16),
            machine("turned", "1"),
            machine("kept", "1"),
            machine("moved", "2"),
            machine("new", "1"),
        ];
        let comparison = compare(&old, &new);
        assert_eq!(
            words(&comparison),
            [
                "update grown",
                "replace turned",
                "unchanged kept",
                "replace moved",
                "create new",
                "delete away",
                "delete gone",
            ]
        );
        assert_eq!(at_risk(&comparison), ["gone", "turned"]);
        let policy =
            Policy { allow_data_loss: ["gone".parse().unwrap()].into(), ..Policy::default() };
        let allowed = Comparison::new(&old, &new, None, &policy).unwrap();
        assert_eq!(at_risk(&allowed), ["turned"]);
        assert_eq!(allowed.rows, comparison.rows, "the policy changes nothing but the refusal");
    }

    #[test]
    fn an_incomplete_plan_deletes_nothing_yet_and_counts_the_data_that_nobody_names() {
        let old = [volume("later", 8), volume("gone", 8), machine("m", "1")];
        let source = "m.wait(); volume(\"later\", #{});";
        let comparison = Comparison::new(&old, &[], Some(source), &Policy::default()).unwrap();
        assert!(comparison.rows.is_empty());
        assert_eq!(at_risk(&comparison), ["gone"]);
        assert!(names("volume(`a`, 1)", &"a".parse().unwrap()));
        assert!(!names("volume(\"ab\", 1)", &"a".parse().unwrap()));
    }

    #[test]
    fn secrets_count_and_are_not_shown() {
        let with = |name: &str, sealed: &str| {
            machine("m", &secret_token(&format!("1/demo/{name}"), sealed))
        };
        let same = compare(&[with("a", "x")], &[with("a", "x")]);
        assert_eq!(words(&same), ["unchanged m"]);
        let changed = compare(&[with("a", "x")], &[with("a", "y")]);
        assert_eq!(words(&changed), ["replace m"]);
        let text = serde_json::to_string(&changed.rows).unwrap();
        assert!(text.contains("(secret a, changed)"), "{text}");
        let other = compare(&[with("a", "x")], &[with("b", "y")]);
        let text = serde_json::to_string(&other.rows).unwrap();
        assert!(text.contains("(secret a)") && text.contains("(secret b)"), "{text}");
        assert!(!text.contains("sealed"), "{text}");
    }

    #[test]
    fn the_refusal_says_what_to_write() {
        let names: Vec<Name> = vec!["a".parse().unwrap(), "b".parse().unwrap()];
        assert!(Comparison::data_loss(&[]).is_ok());
        let failure = Comparison::data_loss(&names).unwrap_err();
        assert_eq!(failure.code, Code::DataLoss);
        for part in ["a, b", r#""allow_data_loss": ["a", "b"]"#, "--allow-data-loss b"] {
            assert!(failure.message.contains(part), "{}", failure.message);
        }
    }

    #[test]
    fn only_what_is_known_to_be_empty_holds_nothing() {
        let data = volume("data", 1);
        let snapshots = json!([{ "name": "before", "taken_at": 1 }]);
        for (status, holds) in [
            (Some(json!(null)), false),
            (Some(json!({ "size": 1, "used": 16384, "empty": true })), false),
            (Some(json!({ "size": 1, "used": 16384, "empty": false })), true),
            (Some(json!({ "size": 1, "used": 16384 })), true),
            (Some(json!({ "size": 1, "used": 1, "empty": true, "snapshots": snapshots })), true),
            (None, true),
        ] {
            assert_eq!(holds_data(&data, status.as_ref()), holds, "{status:?}");
        }
    }

    #[test]
    fn what_holds_more_does_not_shrink_and_all_of_it_is_told() {
        let old = [volume("a", 8), volume("b", 8), volume("c", 8), volume("d", 8)];
        let new = [volume("a", 2), volume("b", 2), volume("c", 2), volume("d", 9)];
        let comparison = compare(&old, &new);
        let asked: Vec<_> = comparison.to_observe().into_iter().map(|r| r.name).collect();
        assert_eq!(asked.iter().map(Name::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
        let used = |mib: u64| json!({ "size": 8u64 << 20, "used": mib << 20, "empty": false });
        let see = |name: &str, status: Value| (name.parse().unwrap(), status);
        let observed: Observed =
            [see("a", used(3)), see("b", used(2)), see("d", used(8))].into_iter().collect();
        let failure = comparison.check(&observed).unwrap_err();
        assert_eq!(failure.code, Code::BelowUse);
        assert!(
            failure.message.starts_with("'a': the volume holds 3.0 MiB"),
            "{}",
            failure.message
        );
        assert!(!failure.message.contains("'b'"), "{}", failure.message);
        let observed = [see("a", used(5)), see("c", used(4))].into_iter().collect();
        let message = comparison.check(&observed).unwrap_err().message;
        assert!(message.contains("'a'") && message.contains("; 'c'"), "{message}");
        let observed = [see("a", used(1)), see("c", json!(null))].into_iter().collect();
        assert_eq!(comparison.check(&observed), Ok(()), "b could not be found out");
    }
}
