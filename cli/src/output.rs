//! The only place that prints.
//!
//! A reader that went away (`rhizome logs … | head`) ends the process as SIGPIPE would.

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use rhizome_model::Failure;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::Error;

/// 128 + SIGPIPE, what a shell reports for a program whose reader left.
const READER_LEFT: i32 = 141;

/// A line, or several, to standard output.
pub fn line(text: impl std::fmt::Display) {
    write(std::io::stdout().lock(), format!("{text}\n").as_bytes());
}

/// A line to standard error: what is said beside the result.
pub fn note(text: impl std::fmt::Display) {
    write(std::io::stderr().lock(), format!("{text}\n").as_bytes());
}

/// Bytes as they are.
pub fn stdout(bytes: &[u8]) {
    write(std::io::stdout().lock(), bytes);
}

pub fn stderr(bytes: &[u8]) {
    write(std::io::stderr().lock(), bytes);
}

/// One JSON value on one line.
pub fn json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => line(text),
        Err(e) => note(format!("error: cannot write the result as JSON: {e}")),
    }
}

/// One JSON value, for people too.
pub fn pretty_json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(text),
        Err(e) => note(format!("error: cannot write the result as JSON: {e}")),
    }
}

pub fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

pub fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Shows why a command failed, and gives its exit code.
pub fn error(error: &Error, as_json: bool) -> ExitCode {
    if as_json {
        json(&error_json(error));
    } else {
        for failure in &error.failures {
            note(failure_text(failure));
        }
    }
    ExitCode::from(error.exit)
}

/// `{"error", "code", …}` of the first failure, and the others beside it.
fn error_json(error: &Error) -> Value {
    let mut all = error.failures.iter().map(|f| serde_json::to_value(f).unwrap_or(Value::Null));
    let mut object = all.next().unwrap_or_else(|| json!({}));
    let others: Vec<_> = all.collect();
    if !others.is_empty() {
        object["others"] = others.into();
    }
    object
}

pub fn failure_text(failure: &Failure) -> String {
    let mut text = format!("error: {}", failure.message);
    if let Some(resource) = &failure.resource {
        text.push_str(&format!("\nresource: {resource}"));
    }
    if let Some(detail) = &failure.detail {
        // A diagnostic begins with the message, which was said.
        let (first, rest) = detail.split_once('\n').unwrap_or((detail, ""));
        let said = !first.is_empty() && failure.message.starts_with(first);
        let unsaid = if said { rest } else { detail }.trim_end();
        if !unsaid.is_empty() {
            text.push('\n');
            text.push_str(unsaid);
        }
    }
    text.push_str(&format!("\ncode: {}", failure.code));
    text
}

fn write(mut to: impl Write, bytes: &[u8]) {
    let result = to.write_all(bytes).and_then(|()| to.flush());
    if result.is_err_and(|e| e.kind() == ErrorKind::BrokenPipe) {
        std::process::exit(READER_LEFT);
    }
}

#[cfg(test)]
mod tests {
    use rhizome_model::Code;

    use super::*;

    fn failure() -> Failure {
        Failure::new(Code::ScriptSyntaxError, "demo.rhai:3:7: expected ')'")
            .with_detail("3 | volume(\"a\"\n  |       ^")
    }

    #[test]
    fn errors_for_people() {
        insta::assert_snapshot!(failure_text(&failure()));
    }

    #[test]
    fn a_diagnostic_does_not_say_its_message_twice() {
        let failure = Failure::new(Code::ScriptInvalid, "a:1:1: no `f`; did you mean `g`?")
            .with_detail("a:1:1: no `f`\n 1 | f()\n   | ^ did you mean `g`?");
        assert_eq!(
            failure_text(&failure),
            "error: a:1:1: no `f`; did you mean `g`?\n 1 | f()\n   | ^ did you mean `g`?\n\
             code: script_invalid"
        );
    }

    #[test]
    fn errors_for_programs() {
        let error = Error::refused(vec![failure(), Failure::new(Code::InvalidSpec, "second")]);
        insta::assert_snapshot!(serde_json::to_string_pretty(&error_json(&error)).unwrap());
    }
}
