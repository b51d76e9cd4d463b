//! Text for people and editors, from the same registry and engine that scripts run on.

use std::fmt::Write;
use std::io;
use std::sync::Arc;

use rhai::{Engine, Scope};
use rhizome_model::WorkloadKind;
use serde_json::Value;

use crate::api::{self, CONTEXT_NAMES, Link, REFUSED, Session};
use crate::shape::{fields, resolve, spec_schema, status_schema, words};
use crate::wire::{Call, Reply};

/// Definitions for editors (`.d.rhai`): every function and variable that a script has.
pub fn definitions() -> String {
    let engine = described();
    let mut scope = Scope::new();
    for (name, _) in CONTEXT_NAMES {
        scope.push_constant(name, rhai::Map::new());
    }
    let text = engine.definitions_with_scope(&scope).single_file();
    // Some functions are in the standard library, yet refused.
    let refused = |block: &&str| {
        let word = |(name, _): &(&str, &str)| block.contains(&format!("fn {name}("));
        REFUSED.iter().any(word)
    };
    let kept: Vec<_> = text.split("\n\n").filter(|block| !refused(block)).collect();
    kept.join("\n\n")
}

/// The functions, kinds, specs and statuses as Markdown.
pub fn reference() -> String {
    let mut text = String::from("## Variables\n\n| variable | what it is |\n|---|---|\n");
    for (name, what) in CONTEXT_NAMES {
        row(&mut text, &[&format!("`{name}`"), what]);
    }
    text.push_str("\n## Functions\n\n| function | what it does |\n|---|---|\n");
    for (signature, doc) in own_functions() {
        row(&mut text, &[&format!("`{signature}`"), &doc]);
    }
    for kind in WorkloadKind::ALL {
        kind_tables(&mut text, *kind);
    }
    text
}

/// The comment above a kind's function: what it is, and its fields.
pub fn kind_comment(kind: WorkloadKind) -> String {
    let schema = spec_schema(kind);
    let mut text = format!("{}\n\nFields of the spec:\n", kind.summary());
    for field in Field::all(schema) {
        let Field { name, kind, default, what } = field;
        let need = if default == "required" { default } else { format!("default {default}") };
        text.push_str(&format!("- `{name}`: {kind}, {need}. {what}\n"));
    }
    text.trim_end().to_owned()
}

fn kind_tables(text: &mut String, kind: WorkloadKind) {
    text.push_str(&format!("\n## {kind}\n\n{}\n\n", kind.summary()));
    text.push_str("| field | type | default | what it is |\n|---|---|---|---|\n");
    for field in Field::all(spec_schema(kind)) {
        row(text, &[&format!("`{}`", field.name), &field.kind, &field.default, &field.what]);
    }
    text.push_str("\n| property | type | what it is |\n|---|---|---|\n");
    for field in Field::all(status_schema(kind)) {
        row(text, &[&format!("`{}`", field.name), &field.kind, &field.what]);
    }
}

fn row(text: &mut String, cells: &[&str]) {
    let cells: Vec<_> = cells.iter().map(|c| c.replace('|', "\\|").replace('\n', " ")).collect();
    text.push_str(&format!("| {} |\n", cells.join(" | ")));
}

/// One field of a schema, and those of the objects in it.
struct Field {
    name: String,
    kind: String,
    default: String,
    what: String,
}

impl Field {
    fn all(schema: &Value) -> Vec<Self> {
        let mut all = Vec::new();
        Self::collect(schema, schema, "", &mut all);
        all
    }

    fn collect(root: &Value, schema: &Value, prefix: &str, all: &mut Vec<Self>) {
        let required = schema.get("required").and_then(Value::as_array);
        for (key, outer) in fields(schema) {
            let inner = resolve(root, outer);
            let what = outer.get("description").or_else(|| inner.get("description"));
            let needed = required.is_some_and(|r| r.iter().any(|k| k == key));
            let default = match outer.get("default") {
                Some(value) => format!("`{value}`"),
                None if needed => "required".into(),
                None => "none".into(),
            };
            all.push(Self {
                name: format!("{prefix}{key}"),
                kind: kind_of(root, inner),
                default,
                what: what.and_then(Value::as_str).unwrap_or_default().replace('\n', " "),
            });
            let items = inner.get("items").map(|items| resolve(root, items));
            if let Some(items) = items {
                Self::collect(root, items, &format!("{prefix}{key}[]."), all);
            }
            Self::collect(root, inner, &format!("{prefix}{key}."), all);
        }
    }
}

fn kind_of(root: &Value, schema: &Value) -> String {
    if let Some(words) = words(schema) {
        return words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(" or ");
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(variants) = schema.get(key).and_then(Value::as_array) {
            let mut kinds: Vec<_> =
                variants.iter().map(|v| kind_of(root, resolve(root, v))).collect();
            kinds.dedup();
            return kinds.join(" or ");
        }
    }
    match schema.get("type") {
        Some(Value::String(kind)) => script_type(kind).into(),
        Some(Value::Array(kinds)) => {
            let kinds = kinds.iter().filter_map(Value::as_str);
            kinds.map(script_type).collect::<Vec<_>>().join(" or ")
        }
        _ => "any".into(),
    }
}

fn script_type(json: &str) -> &str {
    match json {
        "object" => "map",
        "integer" => "int",
        "boolean" => "bool",
        "null" => "()",
        other => other,
    }
}

/// Signature and comment of the functions that are ours.
fn own_functions() -> Vec<(String, String)> {
    let engine = described();
    let mut functions = engine.collect_fn_metadata(
        None,
        |info| {
            let metadata = info.metadata;
            let word = metadata.name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if metadata.comments.is_empty() || !word {
                return None;
            }
            let lines = metadata.comments.iter().map(|c| c.trim_start_matches("///").trim());
            // A kind's fields have tables of their own.
            let doc: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let mut signature = String::new();
            let params: Vec<_> = metadata.params_info.iter().map(|p| p.as_str()).collect();
            let _ = match params.split_first() {
                Some((first, others)) if first.starts_with("handle:") => {
                    write!(signature, "handle.{}({})", metadata.name, others.join(", "))
                }
                _ => write!(signature, "{}({})", metadata.name, params.join(", ")),
            };
            if !matches!(metadata.return_type.as_str(), "" | "()") {
                let _ = write!(signature, " -> {}", metadata.return_type);
            }
            Some((signature.replace("&mut ", "").replace("&str", "String"), doc.join(" ")))
        },
        false,
    );
    functions.sort();
    functions
}

/// An engine that is only looked at.
fn described() -> Engine {
    struct Nobody;
    impl Link for Nobody {
        fn call(&self, _: Call) -> io::Result<Reply> {
            Ok(Reply::Aborted)
        }
    }
    let session: Arc<Session> = Session::new(Box::new(Nobody));
    api::engine(&session)
}
