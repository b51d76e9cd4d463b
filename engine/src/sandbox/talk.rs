//! One evaluation from the parent's side: answers the child's calls, believes nothing.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rhizome_model::secret::tokens;
use rhizome_model::{Code, DesiredResource, Failure, Name, WorkloadKind};
use serde_json::Value;
use tokio::time::timeout;

use super::process::Child;
use super::redact::Redactor;
use crate::wire::{
    Call, ChildStop, Done, FromChild, MAX_TO_CHILD, Mode, Reply, ToChild, Work, encode, receive,
};
use crate::{Evaluation, Host, HostError, Script, Stop};

/// Bytes that a child may send in all: what we keep of them is bounded by this.
const MAX_TOTAL: usize = 4 << 20;
/// Calls of one evaluation, beside those that declare.
const MAX_CALLS: usize = 10_000;

/// What a finished child told.
pub struct Told {
    pub evaluation: Evaluation,
    pub findings: Vec<Failure>,
}

pub struct Talk<'a> {
    script: &'a Script,
    host: &'a dyn Host,
    evaluation: Evaluation,
    declared: HashMap<Name, WorkloadKind>,
    redactor: Redactor,
    /// Of the host, by number: the child only names them.
    failures: Vec<Failure>,
    effects: u64,
    calls: usize,
    bytes: usize,
    messages: (usize, usize),
    /// What the script waits for, for the message when time is over.
    waiting: Mutex<Option<String>>,
}

/// Why a talk ends early.
enum Break {
    Stop(Stop),
    /// The child went silent, or speaks nonsense.
    Pipe(io::Error),
}

impl From<io::Error> for Break {
    fn from(error: io::Error) -> Self {
        Self::Pipe(error)
    }
}

/// Why there is nothing told.
pub enum Untold {
    Stop(Stop),
    /// The child had waited, and was gone before it heard anything.
    Unheard,
}

pub fn stop(error: HostError) -> Stop {
    match error {
        HostError::Failed(failure) | HostError::Fatal(failure) => Stop::Failed(failure),
        HostError::Unknown => Stop::Unknown,
        HostError::Aborted => Stop::Aborted,
    }
}

impl<'a> Talk<'a> {
    pub fn new(script: &'a Script, host: &'a dyn Host) -> Self {
        Self {
            script,
            host,
            evaluation: Evaluation::default(),
            declared: HashMap::new(),
            redactor: Redactor::default(),
            failures: Vec::new(),
            effects: 0,
            calls: 0,
            bytes: 0,
            messages: (0, 0),
            waiting: Mutex::new(None),
        }
    }

    pub async fn run(mut self, mut child: Child, mode: Mode) -> (Result<Told, Untold>, Child) {
        let wall = self.script.limits.wall_ms;
        let talk = self.converse(&mut child, mode);
        let ended = timeout(Duration::from_millis(wall), Box::pin(talk)).await;
        let told = match ended {
            Ok(Ok(done)) => self.conclude(done, mode),
            Ok(Err(Break::Stop(stop))) => Err(stop),
            Ok(Err(Break::Pipe(error))) if error.kind() == io::ErrorKind::InvalidData => {
                Err(self.internal(&error.to_string()))
            }
            Ok(Err(Break::Pipe(_))) if child.heard_nothing().await => {
                return (Err(Untold::Unheard), child);
            }
            Ok(Err(Break::Pipe(_))) => {
                let death = child.death().await;
                Err(Stop::Failed(death.failure(&self.script.file, &self.script.limits)))
            }
            Err(_) => Err(self.too_late(wall)),
        };
        let told = told.map_err(|stop| match stop {
            Stop::Failed(failure) => Untold::Stop(Stop::Failed(self.redactor.failure(failure))),
            other => Untold::Stop(other),
        });
        (told, child)
    }

    async fn converse(&mut self, child: &mut Child, mode: Mode) -> Result<Done, Break> {
        let work = Work {
            mode,
            file: self.script.file.clone(),
            source: self.script.source.clone(),
            context: self.script.context.clone(),
        };
        let mut first = encode(&ToChild::Limits(self.script.limits), MAX_TO_CHILD)?;
        first.append(&mut encode(&ToChild::Script(Box::new(work)), MAX_TO_CHILD)?);
        child.tell(&first).await?;
        loop {
            let (message, bytes) = receive(&mut child.stdout).await?;
            self.bytes += bytes;
            if self.bytes > MAX_TOTAL {
                return Err(self.limit(&format!("it says more than {} MiB", MAX_TOTAL >> 20)));
            }
            match message {
                FromChild::Done(done) => return Ok(done),
                FromChild::Call(call) => {
                    let reply = self.answer(call).await?;
                    child.tell(&encode(&ToChild::Reply(reply), MAX_TO_CHILD)?).await?;
                }
            }
        }
    }

    async fn answer(&mut self, call: Call) -> Result<Reply, Break> {
        self.calls += usize::from(!matches!(call, Call::Declare(_)));
        if self.calls > MAX_CALLS {
            return Err(self.limit(&format!("it makes more than {MAX_CALLS} calls")));
        }
        let host = self.host;
        let answer = match call {
            Call::Declare(resource) => self.declare(resource).await?,
            Call::Read(name) => {
                self.is_declared(&name)?;
                self.wait_for(format!("`{name}`"));
                host.read(&name).await
            }
            Call::Ready(name) => {
                self.is_declared(&name)?;
                self.wait_for(format!("`{name}`"));
                host.ready(&name).await
            }
            Call::Act { name, action } => {
                self.is_declared(&name)?;
                self.wait_for(format!("an action on `{name}`"));
                host.act(self.effect(), &name, action).await
            }
            Call::Secret(name) => {
                let secret = host.secret(&name).await;
                secret.map(|secret| {
                    self.redactor.learn(&secret);
                    Value::String(secret)
                })
            }
            Call::Log(message) => {
                self.messages.0 += 1;
                self.count(self.messages.0, "lines logged")?;
                let message = self.redactor.text(message);
                host.log(self.effect(), message).await.map(|()| Value::Null)
            }
            Call::Output { key, value } => {
                self.messages.1 += 1;
                self.count(self.messages.1, "outputs")?;
                let (key, value) = (self.redactor.text(key), self.redactor.value(value));
                self.evaluation.outputs.insert(key.clone(), value.clone());
                host.output(key, value).await.map(|()| Value::Null)
            }
        };
        *self.waiting.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(match answer {
            Ok(value) => Reply::Value(value),
            Err(HostError::Failed(failure)) => {
                self.failures.push(failure.clone());
                Reply::Failed { id: self.failures.len() - 1, failure }
            }
            Err(HostError::Unknown) => Reply::Unknown,
            Err(HostError::Fatal(failure)) => return Err(Break::Stop(Stop::Failed(failure))),
            Err(HostError::Aborted) => return Err(Break::Stop(Stop::Aborted)),
        })
    }

    /// An honest child has checked all of this, and said what is wrong with file and line.
    async fn declare(
        &mut self,
        mut resource: DesiredResource,
    ) -> Result<Result<Value, HostError>, Break> {
        self.count_resources()?;
        if self.declared.contains_key(&resource.name) {
            return Err(self.strange("it declares a name twice"));
        }
        let kind = resource.kind;
        resource.spec = kind.parse_spec(resource.spec).map_err(|f| self.strange(&f.message))?;
        let id = self.script.context.deployment.resource(resource.name.clone());
        resource.spec = kind.complete(&resource.spec, &id).map_err(|f| self.strange(&f.message))?;
        let references = kind.references(&resource.spec).map_err(|f| self.strange(&f.message))?;
        for reference in references {
            if self.declared.get(&reference.name) != Some(&reference.kind) {
                return Err(self.strange("it refers to what is not declared"));
            }
        }
        self.declared.insert(resource.name.clone(), kind);
        self.evaluation.resources.push(resource.clone());
        let predicted = self.host.declare(self.effect(), resource).await;
        if let Ok(known) = &predicted {
            tokens(known).iter().for_each(|token| self.redactor.learn(token));
        }
        Ok(predicted)
    }

    fn is_declared(&self, name: &Name) -> Result<(), Break> {
        let strange = || self.strange("it speaks of a resource that is not declared");
        self.declared.get(name).map(|_| ()).ok_or_else(strange)
    }

    /// The number of the next effect.
    fn effect(&mut self) -> u64 {
        self.effects += 1;
        self.effects - 1
    }

    fn wait_for(&self, what: String) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
    }

    fn count_resources(&self) -> Result<(), Break> {
        let most = self.script.limits.resources;
        if self.evaluation.resources.len() < most {
            return Ok(());
        }
        Err(self.limit(&format!("a script declares at most {most} resources")))
    }

    fn count(&self, number: usize, what: &str) -> Result<(), Break> {
        let most = self.script.limits.messages;
        if number <= most { Ok(()) } else { Err(self.limit(&format!("more than {most} {what}"))) }
    }

    fn limit(&self, what: &str) -> Break {
        let message = format!("{}: {what}", self.script.file);
        Break::Stop(Stop::Failed(Failure::new(Code::ScriptLimit, message)))
    }

    fn strange(&self, what: &str) -> Break {
        Break::Stop(self.internal(what))
    }

    fn internal(&self, what: &str) -> Stop {
        let message = format!("{}: the sandbox broke its protocol: {what}", self.script.file);
        tracing::error!(message);
        Stop::Failed(Failure::new(Code::Internal, message))
    }

    fn too_late(&self, wall: u64) -> Stop {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let what = match waiting.as_deref() {
            Some(what) => format!("it waits for {what} still"),
            None => "it computes still".to_owned(),
        };
        let message = format!("{}: not at its end after {wall} ms: {what}", self.script.file);
        Stop::Failed(Failure::new(Code::ScriptLimit, message))
    }

    fn conclude(&mut self, done: Done, mode: Mode) -> Result<Told, Stop> {
        let stop = match done.stop {
            None if mode == Mode::Check || done.findings.is_empty() => {
                let evaluation = std::mem::take(&mut self.evaluation);
                return Ok(Told { evaluation, findings: done.findings });
            }
            None => return Err(self.internal("it found something and went on")),
            Some(stop) => stop,
        };
        Err(match stop {
            ChildStop::Failed(failure) if of_a_script(failure.code) => Stop::Failed(failure),
            ChildStop::Failed(failure) => self.internal(&failure.message),
            ChildStop::Raised { id, place } => match self.failures.get(id) {
                Some(failure) => Stop::Failed(placed(failure.clone(), &place)),
                None => self.internal("it names a failure that was not"),
            },
            ChildStop::Unknown => Stop::Unknown,
            ChildStop::Aborted => Stop::Aborted,
        })
    }
}

/// The codes that a child may give by itself.
fn of_a_script(code: Code) -> bool {
    use Code::{
        InvalidSpec, ScriptError, ScriptFailed, ScriptInvalid, ScriptLimit, ScriptSyntaxError,
    };
    let own =
        [ScriptSyntaxError, ScriptInvalid, InvalidSpec, ScriptLimit, ScriptFailed, ScriptError];
    own.contains(&code)
}

/// A failure of the host, with the line that waited for it.
fn placed(failure: Failure, place: &str) -> Failure {
    let detail = match &failure.detail {
        Some(detail) => format!("{detail}\n{place}"),
        None => place.to_owned(),
    };
    failure.with_detail(detail)
}
