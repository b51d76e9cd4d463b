//! What is wrong with a script, and where: `file:line:column`, the line, a caret, a hint.

use rhai::Position;
use rhizome_model::{Code, Failure};

/// So much of an offending line is shown, around the column.
const SHOWN: usize = 120;
/// Messages end here: a script can make them as long as its longest text.
const MAX_MESSAGE: usize = 2000;
/// A word is taken for a misspelling of another from this likeness on (Jaro-Winkler).
const ALIKE: f64 = 0.82;

/// Something that is wrong at a place.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    pub code: Code,
    pub position: Position,
    pub message: String,
    pub hint: Option<String>,
}

impl Finding {
    pub fn new(code: Code, position: Position, message: impl Into<String>) -> Self {
        Self { code, position, message: message.into(), hint: None }
    }

    #[must_use]
    pub fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

/// A script's text, for showing places in it.
pub struct Text<'a> {
    pub file: &'a str,
    pub source: &'a str,
}

impl Text<'_> {
    pub fn failure(&self, finding: &Finding) -> Failure {
        let position = self.sharpen(finding.position);
        let place = self.place(position);
        let message = clean(&finding.message);
        let hinted = match &finding.hint {
            Some(hint) => format!("{place}: {message}; {}", clean(hint)),
            None => format!("{place}: {message}"),
        };
        Failure::new(finding.code, hinted).with_detail(self.render(
            position,
            &message,
            finding.hint.as_deref(),
        ))
    }

    /// Rhai places a property at its dot; a reader looks for its name.
    fn sharpen(&self, position: Position) -> Position {
        let (Some(line), Some(column)) = (position.line(), position.position()) else {
            return position;
        };
        let text = self.source.lines().nth(line - 1).unwrap_or_default();
        let dots = text.chars().skip(column.max(1) - 1).take_while(|c| matches!(c, '.' | '?'));
        let column = u16::try_from(column + dots.count()).unwrap_or(u16::MAX);
        u16::try_from(line).map_or(position, |line| Position::new(line, column))
    }

    fn place(&self, position: Position) -> String {
        match (position.line(), position.position()) {
            (Some(line), Some(column)) => format!("{}:{line}:{column}", self.file),
            (Some(line), None) => format!("{}:{line}", self.file),
            (None, _) => self.file.to_owned(),
        }
    }

    /// The place, the message, the line and a caret below the column, with the hint.
    pub fn render(&self, position: Position, message: &str, hint: Option<&str>) -> String {
        let position = self.sharpen(position);
        let mut text = format!("{}: {message}", self.place(position));
        let hint = hint.map(clean);
        let line = position.line().and_then(|n| Some((n, self.source.lines().nth(n - 1)?)));
        let Some((number, line)) = line else {
            if let Some(hint) = hint {
                text.push_str(&format!("\n  {hint}"));
            }
            return text;
        };
        let column = position.position().unwrap_or(1).max(1) - 1;
        let first = column.saturating_sub(SHOWN / 2);
        let shown: String = line.chars().skip(first).take(SHOWN).map(printable).collect();
        let width = line
            .chars()
            .skip(column)
            .take(SHOWN / 2)
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .count()
            .max(1);
        let gutter = number.to_string();
        let carets = format!("{}{}", " ".repeat(column - first), "^".repeat(width));
        text.push_str(&format!("\n {gutter} | {}", shown.trim_end()));
        text.push_str(&format!("\n {} | {carets}", " ".repeat(gutter.len())));
        if let Some(hint) = hint {
            text.push_str(&format!(" {hint}"));
        }
        text
    }
}

fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Safe to print and not endless.
fn clean(message: &str) -> String {
    message.chars().take(MAX_MESSAGE).map(|c| if c == '\n' { ' ' } else { printable(c) }).collect()
}

/// The word of `words` that was most likely meant.
pub fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |w: &str| strsim::jaro_winkler(&word.to_lowercase(), &w.to_lowercase());
    let ranked = words.into_iter().filter(|w| *w != word).map(|w| (likeness(w), w));
    let best = ranked.filter(|(l, _)| *l >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(best.1)
}

pub fn did_you_mean<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, words).map(|w| format!("did you mean `{w}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown() {
        let text = Text { file: "a.rhai", source: "let a = 1;\n\tlet b = machin(1);\x1b[2J" };
        let finding = Finding::new(Code::ScriptInvalid, Position::new(2, 10), "no `machin`")
            .with_hint(did_you_mean("machin", ["volume", "machine"]));
        let failure = text.failure(&finding);
        insta::assert_snapshot!(failure.message, @"a.rhai:2:10: no `machin`; did you mean `machine`?");
        insta::assert_snapshot!(failure.detail.unwrap(), @r"
        a.rhai:2:10: no `machin`
         2 |  let b = machin(1);�[2J
           |          ^^^^^^ did you mean `machine`?
        ");
    }

    #[test]
    fn a_long_line_is_cut_around_the_column() {
        let source = format!("{}oops{}", "a".repeat(5000), "b".repeat(5000));
        let text = Text { file: "f", source: &source };
        let shown = text.render(Position::new(1, 5001), "m", None);
        assert!(shown.len() < 400 && shown.contains("oops"), "{shown}");
    }

    #[test]
    fn only_what_is_alike_is_suggested() {
        assert_eq!(nearest("memroy", ["memory", "mounts", "cpu"]), Some("memory"));
        assert_eq!(nearest("zzz", ["memory", "mounts", "cpu"]), None);
    }
}
