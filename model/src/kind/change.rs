//! What a change of a spec means for the resource that is there.
//!
//! The driver of a kind decides by the same function by which a plan foretells what it will do.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Kind;

/// What becomes of a resource whose spec changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    None,
    /// It changes in place, and keeps what it holds.
    Update(Vec<FieldChange>),
    /// It is made anew, and what it held is gone.
    Replace {
        fields: Vec<FieldChange>,
        reason: String,
    },
}

/// A field that is not as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldChange {
    /// For example `memory`, `env.PORT` or `mounts[0].path`.
    pub path: String,
    /// Absent where there was nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub old: Option<Value>,
    /// Absent where nothing is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub new: Option<Value>,
}

/// What a resource made for `old` goes through to be as `new` says.
pub fn change<K: Kind>(old: &K::Spec, new: &K::Spec) -> Change {
    if old == new {
        return Change::None;
    }
    let changed = fields::<K>(old, new);
    let (old, new) = (K::fixed(old), K::fixed(new));
    if old == new {
        return Change::Update(changed);
    }
    let mut names: Vec<_> = fields::<K>(&old, &new)
        .into_iter()
        .map(|f| f.path.split(['.', '[']).next().unwrap_or_default().to_owned())
        .collect();
    names.dedup();
    let reason = format!("{} cannot change in place", names.join(", "));
    Change::Replace { fields: changed, reason }
}

fn fields<K: Kind>(old: &K::Spec, new: &K::Spec) -> Vec<FieldChange> {
    // A spec came from JSON and goes back to it.
    let json = |spec| serde_json::to_value(spec).unwrap_or_default();
    let mut found = Vec::new();
    compare(String::new(), Some(&json(old)), Some(&json(new)), &mut found);
    found
}

/// Goes down as far as both have the same shape. A list whose length changes is one field.
fn compare(path: String, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<FieldChange>) {
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let dot = if path.is_empty() { "" } else { "." };
                compare(format!("{path}{dot}{key}"), old.get(key), new.get(key), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if old.len() == new.len() => {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                compare(format!("{path}[{i}]"), Some(old), Some(new), found);
            }
        }
        (old, new) if old == new => {}
        (old, new) => {
            found.push(FieldChange { path, old: old.cloned(), new: new.cloned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::WorkloadKind;

    fn machine(more: &Value) -> Value {
        let mut spec = json!({ "image": "file:///a", "env": { "A": "1" }, "command": ["/a", "b"] });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        WorkloadKind::Machine.parse_spec(spec).unwrap()
    }

    fn paths(fields: &[FieldChange]) -> Vec<&str> {
        fields.iter().map(|f| f.path.as_str()).collect()
    }

    #[test]
    fn a_machine_keeps_its_files_where_only_limits_change() {
        let old = machine(&json!({}));
        assert_eq!(WorkloadKind::Machine.change(&old, &old), Ok(Change::None));
        let new = machine(&json!({ "cpu": 2, "memory": "1GiB", "disk": "1GiB", "pids": 9,
            "restart": "never" }));
        let Ok(Change::Update(fields)) = WorkloadKind::Machine.change(&old, &new) else { panic!() };
        assert_eq!(paths(&fields), ["cpu", "disk", "memory", "pids", "restart"]);
        assert_eq!(
            (&fields[2].old, &fields[2].new),
            (&Some(old["memory"].clone()), &Some(json!(1u64 << 30)))
        );
    }

    #[test]
    fn what_a_machine_is_made_of_replaces_it() {
        let old = machine(&json!({}));
        for (more, path, reason) in [
            (json!({ "image": "file:///b" }), "image", "image"),
            (json!({ "env": { "A": "2" } }), "env.A", "env"),
            (json!({ "env": {} }), "env.A", "env"),
            (json!({ "command": ["/a", "c"] }), "command[1]", "command"),
            (json!({ "command": ["/a"] }), "command", "command"),
            (json!({ "mounts": [{ "volume": "v", "path": "/v" }] }), "mounts", "mounts"),
            (json!({ "workdir": "/tmp" }), "workdir", "workdir"),
        ] {
            let change = WorkloadKind::Machine.change(&old, &machine(&more)).unwrap();
            let Change::Replace { fields, reason: said } = change else { panic!("{more}") };
            assert_eq!(paths(&fields), [path]);
            assert_eq!(said, format!("{reason} cannot change in place"));
        }
    }

    #[test]
    fn a_volume_is_never_made_anew_for_its_size() {
        let volume = |mib: u64| json!({ "size": mib << 20 });
        for (old, new) in [(8, 16), (16, 8)] {
            let change = WorkloadKind::Volume.change(&volume(old), &volume(new)).unwrap();
            assert!(matches!(change, Change::Update(f) if paths(&f) == ["size"]));
        }
    }

    proptest! {
        #[test]
        fn nothing_changes_exactly_where_nothing_differs(
            a in (1u32..4, 4u64..8, prop::collection::btree_map("[AB]", "[xy]", 0..3)),
            b in (1u32..4, 4u64..8, prop::collection::btree_map("[AB]", "[xy]", 0..3)),
        ) {
            let spec = |(cpu, mib, env): &(u32, u64, std::collections::BTreeMap<String, String>)| {
                machine(&json!({ "cpu": cpu, "memory": mib << 20, "env": env }))
            };
            let change = WorkloadKind::Machine.change(&spec(&a), &spec(&b)).unwrap();
            match change {
                Change::None => prop_assert_eq!(a, b),
                Change::Update(fields) => {
                    prop_assert_eq!(a.2, b.2);
                    prop_assert!(!fields.is_empty());
                }
                Change::Replace { fields, .. } => {
                    prop_assert_ne!(a.2, b.2);
                    prop_assert!(!fields.is_empty());
                }
            }
        }
    }
}
