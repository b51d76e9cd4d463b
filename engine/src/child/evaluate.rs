//! From text to effects: size, syntax, analysis, evaluation.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rhai::{AST, Dynamic, Engine, EvalContext, Map, Position, Target};
use rhizome_model::{Code, Failure, Limits};

use super::errors::{Ended, ended};
use crate::analysis::{Functions, analyse, compile};
use crate::api::{Halt, Session, set_context, set_limits};
use crate::diagnostic::{Finding, Text};
use crate::wire::{ChildStop, Done, Mode, Work};

/// Evaluated while the child waits, so that its code is in memory when the script comes.
const WARM_UP: &str = r#"
    fn double(n) { n * 2 }
    let list = [];
    for i in 0..3 { list.push(`item-${i}`); }
    let map = #{ size: "1GiB", list: list };
    if map.list.len() == double(2) { map.size = "2GiB"; }
    [1, 2].map(|n| n + 1)
"#;

pub struct Evaluator {
    pub engine: Engine,
    pub functions: Functions,
    pub session: Arc<Session>,
}

impl Evaluator {
    pub fn warm_up(&self) {
        if let Ok((ast, _)) = compile(&self.engine, WARM_UP) {
            // Both are thrown away: what counts is that they ran once.
            drop(analyse(&ast, &self.functions));
            drop(self.engine.eval_ast::<Dynamic>(&ast));
        }
        for kind in rhizome_model::WorkloadKind::ALL {
            let empty = serde_json::Value::Object(serde_json::Map::new());
            drop(crate::shape::problems(*kind, &crate::shape::Shape::of(&empty)));
            drop(kind.parse_spec(empty));
        }
    }

    pub fn limit(&mut self, limits: Limits) {
        self.session.limit(limits);
        set_limits(&mut self.engine, &limits);
    }

    pub fn run(&mut self, work: &Work) -> Done {
        let text = Text { file: &work.file, source: &work.source };
        let run = AssertUnwindSafe(|| self.evaluate(work, &text));
        catch_unwind(run).unwrap_or_else(|_| {
            let message = format!("{}: the script broke the engine; please report it", work.file);
            done(vec![], Some(ChildStop::Failed(Failure::new(Code::Internal, message))))
        })
    }

    fn evaluate(&mut self, work: &Work, text: &Text<'_>) -> Done {
        let check = work.mode == Mode::Check;
        let most = self.session.limits().source;
        if work.source.len() > most {
            let size = work.source.len();
            let message = format!("the script has {size} bytes; at most {most} are taken");
            let finding = Finding::new(Code::ScriptLimit, Position::NONE, message);
            return refuse(text, vec![finding], check);
        }
        let (ast, mut findings) = match compile(&self.engine, &work.source) {
            Ok(compiled) => compiled,
            Err(findings) => return refuse(text, findings, check),
        };
        let analysis = analyse(&ast, &self.functions);
        findings.extend(analysis.findings);
        findings.sort_by_key(|f| f.position);
        if !findings.is_empty() && !check {
            return refuse(text, findings, false);
        }
        self.session.state().places = analysis.places;
        set_context(&mut self.engine, &work.context);
        if check {
            self.unknown_params(work, analysis.required_params);
        }
        let stop = self.stop(&ast, text);
        if !check {
            return done(vec![], stop);
        }
        let mut found: Vec<_> = findings.iter().map(|f| text.failure(f)).collect();
        if let Some(ChildStop::Failed(failure)) = stop
            && !found.iter().any(|known| place(known) == place(&failure))
        {
            found.push(failure);
        }
        done(found, None)
    }

    fn stop(&self, ast: &AST, text: &Text<'_>) -> Option<ChildStop> {
        let error = self.engine.run_ast(ast).err();
        let at = error.as_ref().map_or(Position::NONE, |e| super::errors::innermost(e).position());
        // Whatever the script made of it: what ended the evaluation counts.
        match self.session.take_halt() {
            Some(Halt::Finding(mut finding)) => {
                if finding.position.is_none() {
                    finding.position = at;
                }
                Some(ChildStop::Failed(text.failure(&finding)))
            }
            Some(Halt::Unknown) => Some(ChildStop::Unknown),
            Some(Halt::Aborted) => Some(ChildStop::Aborted),
            None => match ended(error?.as_ref(), &self.session.limits()) {
                Ended::Well => None,
                Ended::Badly(finding) => Some(ChildStop::Failed(text.failure(&finding))),
                Ended::Raised(raised, at) => {
                    let place = text.render(at, &raised.failure.message, None);
                    Some(ChildStop::Raised { id: raised.id, place })
                }
            },
        }
    }

    /// A check is not given the parameters: one that the script needs is not known, while one
    /// that it can do without is `()`.
    fn unknown_params(&mut self, work: &Work, required: BTreeSet<String>) {
        let given = work.context.params.clone();
        let session = Arc::clone(&self.session);
        self.engine.on_map_missing_property(
            move |map: &mut Map, key: &str, _: EvalContext| -> Result<Target<'_>, _> {
                let params =
                    map.len() == given.len() && map.keys().all(|k| given.contains_key(k.as_str()));
                if params && required.contains(key) {
                    return Err(session.halt(Halt::Unknown));
                }
                Ok(Target::from(Dynamic::UNIT))
            },
        );
    }
}

/// A script that is not evaluated: in a check all that was found, else the first with the others
/// in its detail.
fn refuse(text: &Text<'_>, findings: Vec<Finding>, check: bool) -> Done {
    let mut failures: Vec<_> = findings.iter().map(|f| text.failure(f)).collect();
    if check || failures.is_empty() {
        return done(failures, None);
    }
    let details: Vec<_> = failures.iter().filter_map(|f| f.detail.clone()).collect();
    let mut first = failures.swap_remove(0);
    first.detail = Some(details.join("\n"));
    done(vec![], Some(ChildStop::Failed(first)))
}

/// `file:line:column`, with which every message of ours begins.
fn place(failure: &Failure) -> Vec<&str> {
    failure.message.splitn(4, ':').take(3).collect()
}

fn done(findings: Vec<Failure>, stop: Option<ChildStop>) -> Done {
    Done { findings, stop }
}
