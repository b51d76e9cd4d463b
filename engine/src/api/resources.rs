//! One function per workload kind: `kind("name", #{ spec })`.

use std::sync::Arc;

use rhai::{Dynamic, Engine, EvalAltResult, Map, NativeCallContext, Position};
use rhizome_model::kind::Reference;
use rhizome_model::{Code, DesiredResource, Name, WorkloadKind};
use serde_json::Value;

use super::handle::Handle;
use super::session::{Declared, Session};
use super::value::{NoJson, to_json};
use super::{Fallible, function, place};
use crate::diagnostic::{Finding, did_you_mean, nearest};
use crate::docs;
use crate::shape::{Shape, fields, problems, spec_schema};
use crate::wire::Call;

pub fn register(engine: &mut Engine, session: &Arc<Session>) {
    for kind in WorkloadKind::ALL {
        let session = Arc::clone(session);
        function(kind.as_str(), &["name: &str", "spec: Map", "Handle"], &docs::kind_comment(*kind))
            .register_into_engine(
                engine,
                move |context: NativeCallContext, name: &str, spec: Map| -> Fallible<Handle> {
                    Declaration { session: &session, kind: *kind, at: place(&context) }
                        .declare(name, spec)
                },
            );
    }
}

/// One call of a kind's function.
struct Declaration<'a> {
    session: &'a Arc<Session>,
    kind: WorkloadKind,
    at: Position,
}

impl Declaration<'_> {
    fn declare(&self, name: &str, spec: Map) -> Fallible<Handle> {
        let name = self.name(name)?;
        let spec = self.spec(spec)?;
        let references = self.kind.references(&spec).map_err(|f| self.invalid(&f.message, ""))?;
        for reference in &references {
            self.reference(reference)?;
        }
        let line = self.at.line().unwrap_or(0);
        self.session.state().declared.insert(name.clone(), Declared { kind: self.kind, line });
        let resource = DesiredResource { name: name.clone(), kind: self.kind, spec, line };
        let predicted = self.session.call(Call::Declare(resource))?;
        Ok(Handle::new(Arc::clone(self.session), name, self.kind, predicted))
    }

    fn refuse(&self, code: Code, at: Position, message: String) -> Box<EvalAltResult> {
        self.session.refuse(Finding::new(code, at, message))
    }

    /// A well-formed name that is still free, and room for one more resource.
    fn name(&self, name: &str) -> Fallible<Name> {
        let parsed: Name = name.parse().map_err(|e| {
            self.refuse(Code::ScriptInvalid, self.at, format!("{}: {e}", self.kind))
        })?;
        let state = self.session.state();
        let most = self.session.limits().resources;
        let refusal = if let Some(first) = state.declared.get(&parsed) {
            let (first, line) = (first.line, self.at.line().unwrap_or(0));
            let lines = format!("on line {first} and again on line {line}");
            (Code::ScriptInvalid, format!("`{parsed}` is declared twice: {lines}"))
        } else if state.declared.len() >= most {
            (Code::ScriptLimit, format!("a script declares at most {most} resources"))
        } else {
            return Ok(parsed);
        };
        drop(state);
        Err(self.refuse(refusal.0, self.at, refusal.1))
    }

    /// The checked and complete spec.
    fn spec(&self, spec: Map) -> Fallible<Value> {
        let json = to_json(&Dynamic::from(spec)).map_err(|no| match no {
            NoJson::Kind(what) => {
                self.refuse(Code::InvalidSpec, self.at, format!("{}: {what}", self.kind))
            }
            NoJson::Limit(what) => {
                self.refuse(Code::ScriptLimit, self.at, format!("{}: the spec: {what}", self.kind))
            }
        })?;
        if let Some(problem) = problems(self.kind, &Shape::of(&json)).into_iter().next() {
            let at = self.place_of(&problem.path);
            let finding = Finding::new(Code::InvalidSpec, at, problem.message);
            return Err(self.session.refuse(finding.with_hint(problem.hint)));
        }
        self.kind.parse_spec(json.clone()).map_err(|failure| {
            let field = self.culprit(&json, &failure.message);
            self.invalid(&failure.message, &field)
        })
    }

    fn invalid(&self, message: &str, path: &str) -> Box<EvalAltResult> {
        let own = format!("{}: ", self.kind);
        let text = message.strip_prefix(&own).unwrap_or(message);
        let named = path.is_empty() || text.starts_with(path);
        let message = if named { format!("{own}{text}") } else { format!("{own}{path}: {text}") };
        self.refuse(Code::InvalidSpec, self.place_of(path), message)
    }

    /// The field that an error is about: the one that it begins with, or else the one without
    /// which the error is another.
    fn culprit(&self, spec: &Value, message: &str) -> String {
        let own = format!("{}: ", self.kind);
        let text = message.strip_prefix(&own).unwrap_or(message);
        let first = text.split(':').next().unwrap_or_default();
        let top = first.split(['.', '[']).next().unwrap_or_default();
        if fields(spec_schema(self.kind)).any(|(key, _)| key == top) {
            return first.to_owned();
        }
        let keys: Vec<_> = spec.as_object().into_iter().flat_map(|map| map.keys()).collect();
        let without = |key: &&&String| {
            let mut rest = spec.clone();
            rest.as_object_mut().and_then(|map| map.remove(key.as_str()));
            self.kind.parse_spec(rest).map_err(|f| f.message) != Err(message.to_owned())
        };
        keys.iter().find(without).map(|key| (*key).clone()).unwrap_or_default()
    }

    /// Where a path of the spec stands in the text; the call, when it is not a literal there.
    fn place_of(&self, path: &str) -> Position {
        let state = self.session.state();
        let places = state.places.get(&self.at);
        let found = places.and_then(|p| p.iter().find(|(known, _)| known == path));
        found.map_or(self.at, |(_, position)| *position)
    }

    /// What a spec refers to was declared before, and is of the right kind.
    fn reference(&self, reference: &Reference) -> Fallible<()> {
        let Reference { field, kind, name } = reference;
        let (message, hint) = {
            let state = self.session.state();
            match state.declared.get(name) {
                Some(declared) if declared.kind == *kind => return Ok(()),
                Some(declared) => {
                    let other = declared.kind;
                    (format!("{field}: `{name}` is a {other}, not a {kind}"), None)
                }
                None => {
                    let same = state.declared.iter().filter(|(_, d)| d.kind == *kind);
                    let words: Vec<_> = same.map(|(name, _)| name.as_str()).collect();
                    let hint = match nearest(name.as_str(), words.iter().copied()) {
                        Some(_) => did_you_mean(name.as_str(), words),
                        None => Some(format!("declare it before: {kind}(\"{name}\", …)")),
                    };
                    (format!("{field}: no {kind} `{name}` is declared before this"), hint)
                }
            }
        };
        let message = format!("{}: {message}", self.kind);
        let finding = Finding::new(Code::ScriptInvalid, self.place_of(field), message);
        Err(self.session.refuse(finding.with_hint(hint)))
    }
}
