//! Rhai's errors in our words: the code, the place, what to do.

use rhai::{EvalAltResult, LexError, ParseError, ParseErrorType, Position};
use rhizome_model::{Code, Limits, WorkloadKind};

use crate::api::{REFUSED, Raised};
use crate::diagnostic::Finding;

/// How an evaluation came to its end by itself.
pub enum Ended {
    Well,
    Badly(Finding),
    /// The host said so, and the script did not catch it.
    Raised(Raised, Position),
}

/// The error below the calls that it passed through.
pub fn innermost(error: &EvalAltResult) -> &EvalAltResult {
    match error {
        EvalAltResult::ErrorInFunctionCall(_, _, inner, _)
        | EvalAltResult::ErrorInModule(_, inner, _) => innermost(inner),
        other => other,
    }
}

pub fn ended(error: &EvalAltResult, limits: &Limits) -> Ended {
    use EvalAltResult as E;
    let inner = innermost(error);
    // A native function knows no place: then that of the call counts.
    let at = if inner.position().is_none() { error.position() } else { inner.position() };
    if let Some(raised) = Raised::of(inner) {
        return Ended::Raised(raised, at);
    }
    let limit = |what: String| Finding::new(Code::ScriptLimit, at, what);
    Ended::Badly(match inner {
        E::Exit(..) | E::Return(..) => return Ended::Well,
        E::ErrorTooManyOperations(_) => {
            limit(format!("more than {} operations; is a loop endless?", limits.operations))
        }
        E::ErrorStackOverflow(_) => {
            limit(format!("calls nested more than {} deep", limits.call_depth))
        }
        E::ErrorTooManyVariables(_) => limit("too many variables".into()),
        E::ErrorTooManyModules(_) => limit("scripts have no modules".into()),
        E::ErrorDataTooLarge(what, _) => limit(too_large(what, limits)),
        E::ErrorParsing(kind, at) => parse_kind(kind, *at),
        E::ErrorFunctionNotFound(signature, _) => not_found(signature, at),
        E::ErrorVariableNotFound(name, _) => {
            Finding::new(Code::ScriptInvalid, at, format!("there is no variable `{name}`"))
        }
        other => Finding::new(Code::ScriptError, at, plain(other)),
    })
}

fn too_large(what: &str, limits: &Limits) -> String {
    if what.contains("string") {
        format!("a text longer than {} bytes", limits.string)
    } else if what.contains("map") {
        format!("a map with more than {} entries, those inside it included", limits.map)
    } else {
        format!("an array with more than {} entries, those inside it included", limits.array)
    }
}

/// `f (i64, map)` as a sentence. That there is an `f` at all, the analysis has seen.
fn not_found(signature: &str, at: Position) -> Finding {
    let (name, types) = signature.split_once(" (").unwrap_or((signature, ")"));
    let types = types.trim_end_matches(')').replace("&str | ImmutableString | String", "string");
    let types = types.replace("i64", "int").replace("f64", "float");
    let kind = name.parse::<WorkloadKind>().ok();
    let code = if kind.is_some() { Code::ScriptInvalid } else { Code::ScriptError };
    Finding::new(code, at, format!("`{name}` does not work on ({types})"))
        .with_hint(kind.map(|kind| format!("write {kind}(\"name\", #{{ … }})")))
}

/// The message without the place, which is said elsewhere.
fn plain(error: &EvalAltResult) -> String {
    let text = error.to_string();
    let place = format!(" ({})", position_words(error.position()));
    let text = text.strip_suffix(&place).unwrap_or(&text);
    text.strip_prefix("Runtime error: ").unwrap_or(text).to_owned()
}

fn position_words(at: Position) -> String {
    match (at.line(), at.position()) {
        (Some(line), Some(column)) => format!("line {line}, position {column}"),
        (Some(line), None) => format!("line {line}"),
        (None, _) => String::new(),
    }
}

pub fn parse_finding(error: &ParseError) -> Finding {
    parse_kind(error.err_type(), error.position())
}

fn parse_kind(kind: &ParseErrorType, at: Position) -> Finding {
    use ParseErrorType as P;
    let (code, hint) = match kind {
        P::ExprTooDeep
        | P::TooManyFunctions
        | P::LiteralTooLarge(..)
        | P::BadInput(LexError::StringTooLong(_)) => (Code::ScriptLimit, None),
        P::VariableUndefined(_) | P::ModuleUndefined(_) => (Code::ScriptInvalid, None),
        P::Reserved(word) | P::BadInput(LexError::ImproperSymbol(word, _)) => {
            (Code::ScriptSyntaxError, reserved(word))
        }
        _ => (Code::ScriptSyntaxError, None),
    };
    Finding::new(code, at, kind.to_string()).with_hint(hint)
}

fn reserved(word: &str) -> Option<String> {
    let refused = REFUSED.iter().find(|(name, _)| *name == word).map(|(_, instead)| *instead);
    match word {
        "import" | "export" => Some("a script is one file".into()),
        _ => refused.map(str::to_owned),
    }
}
