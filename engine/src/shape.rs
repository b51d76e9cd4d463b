//! A spec against its JSON schema: unknown, missing and impossible fields, each with its path.
//!
//! The types of `rhizome-model` say the same and more when they read the spec; but they stop at the
//! first mistake and do not know where it stands. This sees every mistake of a spec, also of one
//! that is only partly known because it is read from the script's text.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use rhai::Position;
use rhizome_model::WorkloadKind;
use serde_json::{Map, Value};

use crate::diagnostic::did_you_mean;

/// A value as far as it is known.
#[derive(Debug, Clone)]
pub enum Shape {
    Map(Vec<(String, Position, Shape)>, Position),
    List(Vec<Shape>, Position),
    Text(String, Position),
    Null(Position),
    /// Something else, or something that only evaluation knows.
    Unknown(Position),
}

#[derive(Debug, Clone)]
pub struct Problem {
    /// `mounts[0].path`
    pub path: String,
    pub position: Position,
    pub message: String,
    pub hint: Option<String>,
}

impl Shape {
    pub fn of(value: &Value) -> Self {
        let nowhere = Position::NONE;
        match value {
            Value::Null => Self::Null(nowhere),
            Value::String(text) => Self::Text(text.clone(), nowhere),
            Value::Array(items) => Self::List(items.iter().map(Self::of).collect(), nowhere),
            Value::Object(map) => Self::Map(
                map.iter().map(|(k, v)| (k.clone(), nowhere, Self::of(v))).collect(),
                nowhere,
            ),
            Value::Bool(_) | Value::Number(_) => Self::Unknown(nowhere),
        }
    }

    fn position(&self) -> Position {
        match self {
            Self::Map(_, p) | Self::List(_, p) | Self::Text(_, p) => *p,
            Self::Null(p) | Self::Unknown(p) => *p,
        }
    }

    /// Every path in it and where it stands.
    pub fn places(&self) -> Vec<(String, Position)> {
        let mut places = Vec::new();
        self.collect_places("", &mut places);
        places
    }

    fn collect_places(&self, path: &str, places: &mut Vec<(String, Position)>) {
        match self {
            Self::Map(fields, _) => {
                for (key, position, value) in fields {
                    let path = join(path, key);
                    value.collect_places(&path, places);
                    places.push((path, *position));
                }
            }
            Self::List(items, _) => {
                for (i, item) in items.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    item.collect_places(&path, places);
                    places.push((path, item.position()));
                }
            }
            Self::Text(..) | Self::Null(_) | Self::Unknown(_) => {}
        }
    }
}

/// What is wrong with the spec of a kind, in the order of the text.
pub fn problems(kind: WorkloadKind, spec: &Shape) -> Vec<Problem> {
    let schema = spec_schema(kind);
    let mut walk = Walk { kind, root: schema, problems: Vec::new() };
    walk.value("", schema, spec);
    walk.problems
}

/// The JSON schema of a kind's spec, made once.
pub fn spec_schema(kind: WorkloadKind) -> &'static Value {
    static SCHEMAS: LazyLock<BTreeMap<WorkloadKind, Value>> = LazyLock::new(|| {
        WorkloadKind::ALL.iter().map(|k| (*k, k.spec_schema().to_value())).collect()
    });
    &SCHEMAS[&kind]
}

/// The JSON schema of a kind's status, made once.
pub fn status_schema(kind: WorkloadKind) -> &'static Value {
    static SCHEMAS: LazyLock<BTreeMap<WorkloadKind, Value>> = LazyLock::new(|| {
        WorkloadKind::ALL.iter().map(|k| (*k, k.status_schema().to_value())).collect()
    });
    &SCHEMAS[&kind]
}

/// The fields of an object's schema.
pub fn fields(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

/// Follows `$ref` into `$defs`.
pub fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema.get("$ref").and_then(Value::as_str);
    let name = name.and_then(|r| r.strip_prefix("#/$defs/"));
    name.and_then(|n| root.get("$defs")?.get(n)).unwrap_or(schema)
}

/// The words of an enumeration, where the schema is one.
pub fn words(schema: &Value) -> Option<Vec<&str>> {
    if let Some(word) = schema.get("const") {
        return Some(vec![word.as_str()?]);
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return words.iter().map(Value::as_str).collect();
    }
    let variants = schema.get("oneOf").and_then(Value::as_array)?;
    let words: Option<Vec<_>> = variants.iter().map(words).collect();
    Some(words?.concat())
}

struct Walk<'a> {
    kind: WorkloadKind,
    root: &'a Value,
    problems: Vec<Problem>,
}

impl<'a> Walk<'a> {
    fn value(&mut self, path: &str, schema: &'a Value, shape: &Shape) {
        let schema = resolve(self.root, schema);
        match shape {
            Shape::Map(fields, position) => self.map(path, schema, fields, *position),
            Shape::List(items, _) => {
                if let Some(schema) = schema.get("items") {
                    for (i, item) in items.iter().enumerate() {
                        self.value(&format!("{path}[{i}]"), schema, item);
                    }
                }
            }
            Shape::Text(text, position) => {
                let words = words(schema).unwrap_or_default();
                if !words.is_empty() && !words.contains(&text.as_str()) {
                    let hint = did_you_mean(text, words.iter().copied());
                    let message =
                        format!("{path}: '{text}' is none of \"{}\"", words.join("\", \""));
                    self.problem(path, *position, message, hint);
                }
            }
            Shape::Null(position) => {
                if !takes_null(schema) {
                    let hint = "a parameter that was not given is `()`; write `params.x ?? value`";
                    self.problem(
                        path,
                        *position,
                        format!("{path}: there is no value"),
                        Some(hint.into()),
                    );
                }
            }
            Shape::Unknown(_) => {}
        }
    }

    fn map(
        &mut self,
        path: &str,
        schema: &'a Value,
        fields: &[(String, Position, Shape)],
        position: Position,
    ) {
        let none = &Map::new();
        let known = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties");
        for (key, at, value) in fields {
            let inner = join(path, key);
            match (known.and_then(|k| k.get(key)), others) {
                (Some(schema), _) => self.value(&inner, schema, value),
                (None, Some(Value::Bool(false))) => {
                    let words = known.unwrap_or(none).keys().map(String::as_str);
                    let hint = did_you_mean(key, words.clone()).unwrap_or_else(|| {
                        format!("it has: {}", words.collect::<Vec<_>>().join(", "))
                    });
                    self.problem(&inner, *at, format!("unknown field `{inner}`"), Some(hint));
                }
                (None, Some(schema @ Value::Object(_))) => self.value(&inner, schema, value),
                (None, _) => {}
            }
        }
        let required = schema.get("required").and_then(Value::as_array);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            if !fields.iter().any(|(k, ..)| k == key) {
                let inner = join(path, key);
                self.problem(&inner, position, format!("missing field `{inner}`"), None);
            }
        }
    }

    fn problem(&mut self, path: &str, position: Position, message: String, hint: Option<String>) {
        let message = format!("{}: {message}", self.kind);
        self.problems.push(Problem { path: path.into(), position, message, hint });
    }
}

fn takes_null(schema: &Value) -> bool {
    let null = |v: &Value| v.as_str() == Some("null");
    let typed = match schema.get("type") {
        Some(Value::Array(types)) => types.iter().any(null),
        Some(kind) => null(kind),
        None => schema.get("anyOf").is_none() && schema.get("oneOf").is_none(),
    };
    let any = schema.get("anyOf").and_then(Value::as_array);
    typed || any.is_some_and(|variants| variants.iter().any(takes_null))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_mistake_of_a_spec_is_found() {
        let spec = json!({
            "memroy": "1GiB", "restart": "alway", "workdir": null,
            "mounts": [{ "volume": "a", "path": "/a", "read_only": true }, { "path": "/b" }],
            "env": { "ANY": "x" },
        });
        let found: Vec<_> = problems(WorkloadKind::Machine, &Shape::of(&spec))
            .into_iter()
            .map(|p| format!("{} ({})", p.message, p.hint.unwrap_or_default()))
            .collect();
        insta::assert_snapshot!(found.join("\n"));
    }
}
