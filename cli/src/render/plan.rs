//! Plans for people.

use rhizome_model::kind::FieldChange;
use rhizome_model::{Bytes, PlanStep, WorkloadKind};
use serde_json::Value;

use super::{clean, value};
use crate::plan::{Foretold, NodePlan, Row};

/// A text that is longer is cut: a plan is to be looked over.
const LONGEST: usize = 60;

/// Node by node.
pub fn show(plan: &Foretold) -> String {
    let mut lines = Vec::new();
    for node in &plan.nodes {
        lines.push(head(plan, node));
        let width = node.resources.iter().map(|r| title(r).len()).max().unwrap_or(0);
        lines.extend(node.resources.iter().flat_map(|r| row(r, width)));
        if !node.complete {
            lines.push(
                "  ? what comes next depends on what the script reads: only a deploy knows".into(),
            );
        }
        lines.extend(node.logs.iter().map(|line| format!("  log: {}", clean(line))));
        for (key, said) in &node.outputs {
            lines.push(format!("  output: {} = {}", clean(key), value(said)));
        }
        lines.push(totals(node));
    }
    lines.join("\n")
}

fn head(plan: &Foretold, node: &NodePlan) -> String {
    let place = node.node.map_or_else(|| "no node".to_owned(), |id| format!("node {id}"));
    let from = node.current.map_or_else(String::new, |v| format!(", now version {v}"));
    let count = |word: &str| node.resources.iter().filter(|r| word_of(&r.row.step) == word).count();
    let parts: Vec<_> = ["create", "update", "replace", "delete", "unchanged"]
        .into_iter()
        .filter_map(|word| match (word, count(word)) {
            (_, 0) => None,
            ("unchanged", n) => Some(format!("{n} unchanged")),
            (word, n) => Some(format!("{n} to {word}")),
        })
        .collect();
    let what = if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") };
    format!("{} version {} on {place}{from}: {what}", plan.deployment, plan.version)
}

fn word_of(step: &PlanStep) -> &'static str {
    match step {
        PlanStep::Create => "create",
        PlanStep::Update { .. } => "update",
        PlanStep::Replace { .. } => "replace",
        PlanStep::Delete { .. } => "delete",
        PlanStep::Unchanged => "unchanged",
    }
}

fn title(row: &Row) -> String {
    format!("{} {}", row.row.kind, row.row.name)
}

fn row(row: &Row, width: usize) -> Vec<String> {
    let address = row.address.as_ref().map(|a| format!("at {}", value(a)));
    let (sign, fields, why): (_, &[FieldChange], _) = match &row.row.step {
        PlanStep::Create => ('+', &[], None),
        PlanStep::Update { fields } => ('~', fields, None),
        PlanStep::Replace { fields, reason, .. } => ('!', fields, Some(reason)),
        PlanStep::Delete { reason } => ('-', &[], Some(reason)),
        PlanStep::Unchanged => ('=', &[], None),
    };
    let word = word_of(&row.row.step);
    let notes: Vec<_> = why.cloned().into_iter().chain(address).collect();
    let line = format!("  {sign} {word:<9}  {:<width$}  {}", title(row), notes.join("; "));
    let mut lines = vec![line.trim_end().to_owned()];
    lines.extend(fields.iter().map(|field| {
        let side = |side: &Option<Value>| match side {
            Some(said) => shown(row.row.kind, &field.path, said),
            None => "nothing".to_owned(),
        };
        format!("      {}: {} → {}", clean(&field.path), side(&field.old), side(&field.new))
    }));
    lines
}

/// A value; a size as people write it.
fn shown(kind: WorkloadKind, path: &str, said: &Value) -> String {
    if let (Some(bytes), true) = (said.as_u64(), is_size(kind, path)) {
        return Bytes(bytes).to_string();
    }
    let text = clean(&said.to_string()).replace('\n', " ");
    if text.chars().count() <= LONGEST {
        return text;
    }
    let begin: String = text.chars().take(LONGEST).collect();
    format!("{begin}…")
}

/// Whether the kind's schema says that a field is a number of bytes.
fn is_size(kind: WorkloadKind, path: &str) -> bool {
    let schema = kind.spec_schema();
    let field = schema.get("properties").and_then(|p| p.get(path)).and_then(|f| f.get("$ref"));
    field.and_then(Value::as_str).is_some_and(|r| r.ends_with("/Bytes"))
}

fn totals(node: &NodePlan) -> String {
    let during = if node.reserved == node.total {
        String::new()
    } else {
        format!("; while it changes {}", node.reserved)
    };
    let room = node.available.map_or_else(String::new, |a| format!("\n  has room for {a}"));
    format!("  takes {}{during}{room}", node.total)
}

#[cfg(test)]
mod tests {
    use rhizome_model::{Capacity, Cpu, NodeId, PlanRow, Version};
    use serde_json::json;

    use super::*;

    fn field(path: &str, old: Option<Value>, new: Option<Value>) -> FieldChange {
        FieldChange { path: path.into(), old, new }
    }

    #[test]
    fn a_plan_for_people() {
        let machine = WorkloadKind::Machine;
        let rows = [
            (
                WorkloadKind::Volume,
                "data",
                PlanStep::Update {
                    fields: vec![field("size", Some(json!(16 << 20)), Some(json!(32 << 20)))],
                },
            ),
            (
                machine,
                "web",
                PlanStep::Replace {
                    was: machine,
                    fields: vec![
                        field("env.MODE", Some(json!("a")), Some(json!("(secret mode)"))),
                        field("env.OLD", Some(json!("x".repeat(90))), None),
                    ],
                    reason: "env cannot change in place".into(),
                },
            ),
            (machine, "web-1", PlanStep::Create),
            (machine, "db", PlanStep::Unchanged),
            (
                WorkloadKind::Volume,
                "logs",
                PlanStep::Delete { reason: "the script no longer declares it".into() },
            ),
        ];
        let rows = rows.into_iter().map(|(kind, name, step)| Row {
            address: (kind == machine).then(|| json!("5d3::1")),
            row: PlanRow { name: name.parse().unwrap(), kind, step },
        });
        let capacity = |mib| Capacity {
            cpu: Cpu::from_millis(500),
            memory: Bytes::mib(64),
            disk: Bytes::mib(mib),
        };
        let node = NodePlan {
            node: Some(NodeId(1)),
            current: Some(Version(2)),
            complete: false,
            resources: rows.collect(),
            total: capacity(32),
            reserved: capacity(48),
            available: Some(capacity(4096)),
            outputs: [("url".to_owned(), json!("http://[5d3::1]/"))].into(),
            logs: vec!["hello\u{1b}[31m".into()],
            failure: None,
        };
        let plan = Foretold {
            deployment: "1/app".parse().unwrap(),
            version: Version(3),
            changes: true,
            nodes: vec![node],
            failure: None,
        };
        insta::assert_snapshot!(show(&plan));
    }
}
