//! What a shim is told.

use std::ffi::OsStr;
use std::path::PathBuf;

use rhizome_model::kind::Restart;
use serde::{Deserialize, Serialize};

use super::life::{Past, Policy, Stop};

/// A program that a shim is to keep alive, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// What it does, as errors name it: `run 'sleep 10'`.
    pub what: String,
    /// The starter. It ends with status 0 when the program runs and has become the shim's child;
    /// the process is then in `Place::pid_file`. Otherwise `Place::starter_log` says why.
    pub start: Start,
    /// A starter that takes longer is killed, with all that it has started.
    pub start_timeout_ms: u64,
    /// Asks the program to end; without it that is done by SIGTERM.
    pub stop: Option<Call>,
    /// From when it is asked to end until it is killed.
    pub grace_ms: u64,
    /// Says what an end means when the program's status does not: its own status counts instead,
    /// and what it prints is the reason.
    pub verdict: Option<Call>,
    /// While the process has a name that begins so it is not yet the program, and would not hear.
    pub becoming: Option<String>,
    /// A socket in the shim's folder; what comes out of it goes to the log.
    pub serial: Option<String>,
    /// Folders that go before each start: what an earlier run has left.
    pub clears: Vec<PathBuf>,
    pub restart: Restart,
}

/// What starts a program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Start {
    Command(Call),
    /// A copy of the shim does what `machine-vm start` does in its folder: our own program, which
    /// would take longer to be loaded once more. It is in this control group.
    MachineVm {
        group: PathBuf,
    },
}

/// A command with its arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub program: PathBuf,
    pub args: Vec<String>,
}

impl Call {
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new() }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_string_lossy().into_owned());
        self
    }

    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Orders {
    /// Names this run: a shim of another run has nothing to do any more.
    pub run: String,
    pub program: Program,
    pub log: PathBuf,
    /// Counts how often the program ran out of memory.
    pub oom: PathBuf,
    /// What was before this run.
    pub past: Past,
    /// Written before the shim is signalled: who comes next must not take the program for one that
    /// stays, though the signal is still under way.
    pub stop: Option<Stop>,
}

impl Orders {
    pub fn policy(&self) -> Policy {
        Policy { restart: self.program.restart, grace_ms: self.program.grace_ms }
    }
}
