//! One evaluation as the child sees it: what was declared, what is left of the limits, and why it
//! stopped.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rhai::{Dynamic, EvalAltResult, Position};
use rhizome_model::{Code, Limits, Name, WorkloadKind};
use serde_json::Value;

use super::{Fallible, Raised};
use crate::diagnostic::Finding;
use crate::wire::{Call, Reply};

/// The other end of a call.
pub trait Link: Send + Sync {
    fn call(&self, call: Call) -> io::Result<Reply>;
}

/// What ends an evaluation, whatever the script catches.
#[derive(Debug, Clone)]
pub enum Halt {
    Finding(Finding),
    Unknown,
    Aborted,
}

pub struct Session {
    link: Box<dyn Link>,
    /// With the processor time that was used before they counted.
    limits: OnceLock<(Limits, u64)>,
    /// Whether `state.halt` is set: looked at after every operation.
    stopped: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    pub declared: BTreeMap<Name, Declared>,
    pub logged: usize,
    pub outputs: usize,
    /// Position of a declaring call → path in its literal spec → where that stands.
    pub places: Places,
    halt: Option<Halt>,
}

pub type Places = HashMap<Position, Vec<(String, Position)>>;

pub struct Declared {
    pub kind: WorkloadKind,
    pub line: usize,
}

impl Session {
    pub fn new(link: Box<dyn Link>) -> Arc<Self> {
        Arc::new(Self {
            link,
            limits: OnceLock::new(),
            stopped: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    /// The limits, once and before the first evaluation.
    pub fn limit(&self, limits: Limits) {
        self.limits.get_or_init(|| (limits, processor_time()));
    }

    pub fn limits(&self) -> Limits {
        self.limits.get().map(|(limits, _)| *limits).unwrap_or_default()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under the lock, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub fn take_halt(&self) -> Option<Halt> {
        self.state().halt.take()
    }

    /// Ends the evaluation. The first cause counts.
    pub fn halt(&self, halt: Halt) -> Box<EvalAltResult> {
        self.stopped.store(true, Ordering::Relaxed);
        self.state().halt.get_or_insert(halt);
        Box::new(EvalAltResult::ErrorTerminated(Dynamic::UNIT, Position::NONE))
    }

    pub fn refuse(&self, finding: Finding) -> Box<EvalAltResult> {
        self.halt(Halt::Finding(finding))
    }

    /// Whether the processor time is used up; then the evaluation is ended.
    pub fn out_of_time(&self) -> bool {
        let Some((Limits { cpu_ms: limit, .. }, begin)) = self.limits.get() else { return false };
        let over = processor_time().saturating_sub(*begin) >= *limit;
        if over {
            let message = format!("the script used its {limit} ms of processor time");
            // Who asks ends the evaluation.
            drop(self.refuse(Finding::new(Code::ScriptLimit, Position::NONE, message)));
        }
        over
    }

    /// Asks the parent. A failure of the host is raised in the script, which may catch it.
    pub fn call(&self, call: Call) -> Fallible<Value> {
        if self.stopped() {
            return Err(self.halt(Halt::Aborted));
        }
        match self.link.call(call) {
            Ok(Reply::Value(value)) => Ok(value),
            Ok(Reply::Failed { id, failure }) => {
                let raised = Dynamic::from(Raised { id, failure });
                Err(Box::new(EvalAltResult::ErrorRuntime(raised, Position::NONE)))
            }
            Ok(Reply::Unknown) => Err(self.halt(Halt::Unknown)),
            Ok(Reply::Aborted) => Err(self.halt(Halt::Aborted)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let message = format!("the host cannot be told this: {error}");
                Err(self.refuse(Finding::new(Code::ScriptLimit, Position::NONE, message)))
            }
            // The parent is gone: nobody is left to tell.
            Err(_) => Err(self.halt(Halt::Aborted)),
        }
    }
}

/// Milliseconds that this process has computed.
fn processor_time() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| {
        let time = usage.user_time() + usage.system_time();
        time.num_milliseconds().unsigned_abs()
    })
}
