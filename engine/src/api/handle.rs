//! Handles: resources that a script has declared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rhai::{
    Array, Dynamic, Engine, EvalAltResult, FuncRegistration, Map, NativeCallContext, Position,
};
use rhizome_model::{Action, Code, Failure, Name, WorkloadKind};
use serde_json::Value;

use super::session::Session;
use super::value::{NoJson, from_json, to_json};
use super::{Fallible, function, place};
use crate::diagnostic::{Finding, did_you_mean};
use crate::shape::{fields, status_schema};
use crate::wire::Call;

/// A declared resource. Inside a spec it stands for its name.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

struct Inner {
    name: Name,
    kind: WorkloadKind,
    session: Arc<Session>,
    /// Known before the resource exists.
    predicted: Value,
    /// Known since the script waited for it.
    status: Mutex<Option<Value>>,
}

/// A failure of the host while the script can still catch it.
#[derive(Debug, Clone)]
pub struct Raised {
    pub id: usize,
    pub failure: Failure,
}

impl Handle {
    pub fn new(session: Arc<Session>, name: Name, kind: WorkloadKind, predicted: Value) -> Self {
        Self(Arc::new(Inner { name, kind, session, predicted, status: Mutex::new(None) }))
    }

    pub fn name(&self) -> &Name {
        &self.0.name
    }

    /// A field of the status. Waits for the resource unless the field is known beforehand.
    fn property(&self, at: Position, key: &str) -> Fallible<Dynamic> {
        match key {
            "name" => return Ok(self.0.name.as_str().into()),
            "kind" => return Ok(self.0.kind.as_str().into()),
            _ => {}
        }
        let known = || fields(status_schema(self.0.kind)).map(|(k, _)| k.as_str());
        if !known().any(|k| k == key) {
            let words: Vec<_> = ["name", "kind"].into_iter().chain(known()).collect();
            let hint = did_you_mean(key, words.iter().copied())
                .unwrap_or_else(|| format!("it has: {}", words.join(", ")));
            let message = format!("a {} has no property `{key}`", self.0.kind);
            let finding = Finding::new(Code::ScriptInvalid, at, message).with_hint(Some(hint));
            return Err(self.0.session.refuse(finding));
        }
        if let Some(value) = self.0.predicted.get(key) {
            if self.0.kind.waits_for(key) {
                self.wait()?;
            }
            return Ok(from_json(value));
        }
        let mut status = self.0.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.is_none() {
            *status = Some(self.0.session.call(Call::Read(self.0.name.clone()))?);
        }
        Ok(status.as_ref().and_then(|s| s.get(key)).map_or(Dynamic::UNIT, from_json))
    }

    /// Waits for the resource, once.
    fn wait(&self) -> Fallible<()> {
        let mut status = self.0.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.is_none() {
            let answer = self.0.session.call(Call::Ready(self.0.name.clone()))?;
            // Whoever only foretells waits for nothing, and knows no status.
            *status = Some(answer).filter(Value::is_object);
        }
        Ok(())
    }

    fn act(&self, action: Action) -> Fallible<Dynamic> {
        let name = self.0.name.clone();
        self.0.session.call(Call::Act { name, action }).map(|answer| from_json(&answer))
    }

    /// Does something with a snapshot of this name.
    fn with_snapshot(
        &self,
        at: Position,
        name: &str,
        action: impl FnOnce(Name) -> Action,
    ) -> Fallible<Dynamic> {
        match name.parse() {
            Ok(name) => self.act(action(name)),
            Err(error) => {
                let finding = Finding::new(Code::ScriptInvalid, at, format!("snapshot: {error}"));
                Err(self.0.session.refuse(finding))
            }
        }
    }

    fn resize(&self, at: Position, to: Map) -> Fallible<Dynamic> {
        let refuse = |code, what: String| {
            self.0.session.refuse(Finding::new(code, at, format!("resize: {what}")))
        };
        match to_json(&Dynamic::from(to)) {
            Ok(Value::Object(to)) if !to.is_empty() => self.act(Action::Resize { to }),
            Ok(_) => Err(refuse(Code::ScriptInvalid, "say which field gets which size".into())),
            Err(NoJson::Kind(what)) => Err(refuse(Code::ScriptInvalid, what)),
            Err(NoJson::Limit(what)) => Err(refuse(Code::ScriptLimit, what)),
        }
    }

    fn exec(&self, at: Position, command: Array) -> Fallible<Dynamic> {
        let refuse = |code, what: String| {
            self.0.session.refuse(Finding::new(code, at, format!("exec: {what}")))
        };
        let words = to_json(&Dynamic::from(command)).map_err(|no| match no {
            NoJson::Kind(what) => refuse(Code::ScriptInvalid, what),
            NoJson::Limit(what) => refuse(Code::ScriptLimit, what),
        })?;
        match serde_json::from_value::<Vec<String>>(words) {
            Ok(command) if !command.is_empty() => self.act(Action::Exec { command }),
            Ok(_) => Err(refuse(Code::ScriptInvalid, "name a program".into())),
            Err(_) => {
                Err(refuse(Code::ScriptInvalid, "the program and its arguments are texts".into()))
            }
        }
    }
}

pub fn register(engine: &mut Engine, _: &Arc<Session>) {
    engine.register_type_with_name::<Handle>("Handle");
    engine.register_type_with_name::<Raised>("Failure");
    properties(engine);
    methods(engine);
    failures(engine);
}

/// A getter for every field of every status, so that editors know them; the indexer answers for
/// what is not one, with a hint.
fn properties(engine: &mut Engine) {
    let mut docs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    docs.insert("name".into(), vec!["Its name.".into()]);
    docs.insert("kind".into(), vec!["Its workload kind.".into()]);
    for kind in WorkloadKind::ALL {
        for (key, schema) in fields(status_schema(*kind)) {
            let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
            let text = text.replace('\n', " ");
            docs.entry(key.clone()).or_default().push(format!("{kind}: {text}").trim().into());
        }
    }
    for (key, doc) in docs {
        FuncRegistration::new_getter(&key)
            .with_volatility(true)
            .with_params_info(["handle: &mut Handle", "Dynamic"])
            .with_comments(doc.iter().map(|line| format!("/// {line}")))
            .register_into_engine(
                engine,
                move |context: NativeCallContext, handle: &mut Handle| -> Fallible<Dynamic> {
                    handle.property(place(&context), &key)
                },
            );
    }
    FuncRegistration::new_index_getter()
        .with_volatility(true)
        .with_params_info(["handle: &mut Handle", "key: &str", "Dynamic"])
        .register_into_engine(
            engine,
            |context: NativeCallContext, handle: &mut Handle, key: &str| -> Fallible<Dynamic> {
                handle.property(place(&context), key)
            },
        );
}

fn methods(engine: &mut Engine) {
    function(
        "wait",
        &["handle: &mut Handle", "Map"],
        "Waits until it has ended: `#{ exit_code, output }`, with the last 64 KiB of what it printed.",
    )
    .register_into_engine(engine, |handle: &mut Handle| handle.act(Action::Wait));
    function(
        "exec",
        &["handle: &mut Handle", "command: Array", "Map"],
        "Runs a program inside: `h.exec([\"/bin/true\"])` is `#{ exit_code }`.",
    )
    .register_into_engine(
        engine,
        |context: NativeCallContext, handle: &mut Handle, command: Array| {
            handle.exec(place(&context), command)
        },
    );
    actions(engine);
    for name in ["to_string", "to_debug"] {
        engine.register_fn(name, |handle: &mut Handle| handle.name().to_string());
    }
    engine.register_fn("==", |a: Handle, b: Handle| a.name() == b.name());
    engine.register_fn("!=", |a: Handle, b: Handle| a.name() != b.name());
}

/// What is done with a resource once per call, however often the script is evaluated.
fn actions(engine: &mut Engine) {
    for (name, action, doc) in [
        ("start", Action::Start, "Starts a machine that was stopped or has ended: its status."),
        ("stop", Action::Stop, "Stops a machine, which stays so until it is started: its status."),
        ("restart", Action::Restart, "Stops a machine and starts it: its status."),
    ] {
        function(name, &["handle: &mut Handle", "Map"], doc)
            .register_into_engine(engine, move |handle: &mut Handle| handle.act(action.clone()));
    }
    type Named = fn(Name) -> Action;
    let named: [(&str, Named, &str); 3] = [
        (
            "snapshot",
            |name| Action::Snapshot { name },
            "Keeps what a volume holds now: `data.snapshot(\"monday\")` is `#{ name, taken_at }`.",
        ),
        (
            "restore",
            |name| Action::Restore { name },
            "Brings a volume back to a snapshot, while no machine runs that mounts it: its status.",
        ),
        (
            "drop_snapshot",
            |name| Action::DropSnapshot { name },
            "Forgets a snapshot of a volume; that there is none is fine.",
        ),
    ];
    for (name, action, doc) in named {
        function(name, &["handle: &mut Handle", "name: &str", "Map"], doc).register_into_engine(
            engine,
            move |context: NativeCallContext, handle: &mut Handle, name: &str| {
                handle.with_snapshot(place(&context), name, action)
            },
        );
    }
    let doc = "Gives fields of the spec other values in place, for this version of the deployment: \
               `data.resize(#{ size: \"20GiB\" })` is its status.";
    function("resize", &["handle: &mut Handle", "to: Map", "Map"], doc).register_into_engine(
        engine,
        |context: NativeCallContext, handle: &mut Handle, to: Map| {
            handle.resize(place(&context), to)
        },
    );
}

fn failures(engine: &mut Engine) {
    let getter = |key: &str, doc: &str| {
        FuncRegistration::new_getter(key)
            .with_params_info(["failure: &mut Failure", "String"])
            .with_comments([format!("/// {doc}")])
    };
    getter("message", "What failed and what to do.")
        .register_into_engine(engine, |raised: &mut Raised| raised.failure.message.clone());
    getter("code", "A stable word, for example `image_not_found`.")
        .register_into_engine(engine, |raised: &mut Raised| raised.failure.code.to_string());
    getter("resource", "The resource that it is about, or an empty text.")
        .register_into_engine(engine, |raised: &mut Raised| {
            raised.failure.resource.as_ref().map_or("", Name::as_str).to_owned()
        });
    for name in ["to_string", "to_debug"] {
        engine.register_fn(name, |raised: &mut Raised| raised.failure.message.clone());
    }
}

/// Stands for a script's `throw` of what the host raised.
impl Raised {
    pub fn of(error: &EvalAltResult) -> Option<Self> {
        match error {
            EvalAltResult::ErrorRuntime(value, _) => value.clone().try_cast::<Self>(),
            _ => None,
        }
    }
}
