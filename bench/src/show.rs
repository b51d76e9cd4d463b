//! Tables for people, and the same as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use rhizome_queue::Durability;
use serde_json::{Value, json};

use crate::figures::{Figure, Measured, Missing, Round, drain_ratio, verdicts};
use crate::peers::Kind;
use crate::process::node_folder;

/// One setting of redis-server.
pub struct Compared {
    pub durability: Durability,
    pub peers: BTreeMap<Kind, Round>,
}

impl Compared {
    fn title(&self) -> &'static str {
        match self.durability {
            Durability::None => "Nothing is written to disk",
            Durability::Everysec => "Written to disk every second",
            Durability::Always => "Every answer is on disk (appendfsync always)",
        }
    }

    fn figures(&self) -> impl Iterator<Item = Figure> {
        let measured = |f: &Figure| self.peers.values().any(|round| round.contains_key(f));
        Figure::ALL.into_iter().filter(measured)
    }

    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(std::iter::once("").chain(self.peers.keys().map(|k| k.name())));
        for figure in self.figures() {
            let cells = self.peers.values().map(|round| cell(figure, round.get(&figure)));
            table.add_row(std::iter::once(figure.words().to_owned()).chain(cells));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{}\n\n{table}\n\n{}", self.title(), self.verdict())
    }

    fn verdict(&self) -> String {
        let mut text = String::new();
        for verdict in verdicts(&self.peers) {
            let words = verdict.figure.words();
            let mut not: Vec<String> = Vec::new();
            for (kind, theirs) in &verdict.not_better_than {
                not.push(format!("{} ({})", kind.name(), number(verdict.figure, *theirs)));
            }
            let _ = match (not.is_empty(), verdict.better_than.is_empty()) {
                (true, true) => writeln!(text, "{words}: nobody to compare with"),
                (true, false) => writeln!(text, "{words}: rhizome is better than each"),
                (false, _) => {
                    writeln!(text, "{words}: rhizome is NOT better than {}", not.join(", "))
                }
            };
            for (kind, missing) in &verdict.unknown {
                let why = match missing {
                    Missing::TimedOut(limit) => format!("not within {} s", limit.as_secs()),
                    Missing::Failed(why) => why.clone(),
                };
                let _ = writeln!(text, "  {} has no figure: {why}", kind.name());
            }
        }
        if let Some((ratio, best)) = drain_ratio(&self.peers) {
            let name = best.name();
            let _ = writeln!(text, "drained/s: {ratio:.1} times the best of the others, {name}");
        }
        text
    }

    pub fn json(&self) -> Value {
        let values = |figure: Figure| {
            let values = self.peers.iter().filter_map(|(kind, round)| {
                let value = match round.get(&figure)? {
                    Ok(value) => json!(figure.rounded(*value)),
                    Err(Missing::TimedOut(limit)) => json!({ "not_within_s": limit.as_secs() }),
                    Err(Missing::Failed(why)) => json!({ "failed": why }),
                };
                Some((kind.name().to_owned(), value))
            });
            Value::Object(values.collect())
        };
        let figures = self.figures().map(|f| (f.key().to_owned(), values(f)));
        let verdict = verdicts(&self.peers).into_iter().map(|v| {
            let not: Vec<&str> = v.not_better_than.iter().map(|(k, _)| k.name()).collect();
            let better: Vec<&str> = v.better_than.iter().map(|k| k.name()).collect();
            let unknown: Vec<&str> = v.unknown.iter().map(|(k, _)| k.name()).collect();
            let words =
                json!({ "better_than": better, "not_better_than": not, "unknown": unknown });
            (v.figure.key().to_owned(), words)
        });
        json!({
            "durability": self.durability,
            "figures": Value::Object(figures.collect()),
            "verdict": Value::Object(verdict.collect()),
            "drain_times_the_best": drain_ratio(&self.peers).map(|(r, _)| (r * 10.0).round() / 10.0),
        })
    }
}

fn cell(figure: Figure, measured: Option<&Measured>) -> String {
    match measured {
        Some(Ok(value)) => number(figure, *value),
        Some(Err(missing)) => missing.to_string(),
        None => "not measured".into(),
    }
}

/// With a comma between thousands.
fn number(figure: Figure, value: f64) -> String {
    let plain = format!("{value:.*}", figure.decimals());
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut text = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text + rest
}

/// Name and version of what is compared, and of what it runs on.
pub fn versions(kinds: &[Kind]) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    for kind in kinds {
        if let Some(package) = kind.package()
            && let Some(version) = locked(package)
        {
            versions.insert(package.to_owned(), version);
        }
    }
    if kinds.contains(&Kind::BullmqNode) {
        for package in ["bullmq", "ioredis"] {
            let path = node_folder().join("node_modules").join(package).join("package.json");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let json: Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(version) = json["version"].as_str() {
                versions.insert(format!("npm {package}"), version.to_owned());
            }
        }
        versions.insert("node".into(), said(&["node", "--version"]));
    }
    let redis = said(&["redis-server", "--version"]);
    let version = redis.split_whitespace().find_map(|word| word.strip_prefix("v="));
    versions.insert("redis-server".into(), version.unwrap_or(&redis).to_owned());
    versions
}

/// The version of a crate in our lock file.
fn locked(package: &str) -> Option<String> {
    let mut lines = include_str!("../Cargo.lock").lines();
    lines.find(|line| *line == format!("name = \"{package}\""))?;
    let version = lines.next()?.strip_prefix("version = ")?;
    Some(version.trim_matches('"').to_owned())
}

fn said(command: &[&str]) -> String {
    let output = std::process::Command::new(command[0]).args(&command[1..]).output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        assert_eq!(number(Figure::Drain, 1234567.4), "1,234,567");
        assert_eq!(number(Figure::Drain, 123.0), "123");
        assert_eq!(number(Figure::RedisCpu, 1000.04), "1,000.0");
    }

    #[test]
    fn the_lock_file_says_the_versions() {
        for package in Kind::ALL.iter().filter_map(|k| k.package()) {
            assert!(locked(package).is_some_and(|v| v.contains('.')), "{package}");
        }
    }
}
