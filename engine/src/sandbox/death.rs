//! What a child died of, as far as its status and its last words tell.

use std::fmt;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use rhizome_model::{Code, Failure, Limits};

/// So much of a child's standard error is kept.
pub const MAX_COMPLAINT: u64 = 4096;

pub struct Death {
    /// None: it lives, but does not speak.
    pub status: Option<WaitStatus>,
    pub complaint: String,
}

impl Death {
    fn signal(&self) -> Option<Signal> {
        match self.status {
            Some(WaitStatus::Signaled(_, signal, _)) => Some(signal),
            _ => None,
        }
    }

    pub fn failure(&self, file: &str, limits: &Limits) -> Failure {
        let limit = |what: String| Failure::new(Code::ScriptLimit, format!("{file}: {what}"));
        let memory = || limit(format!("it needs more than {} MiB of memory", limits.memory >> 20));
        let time = || limit(format!("it used its {} ms of processor time", limits.cpu_ms));
        let depth = || limit("its values or calls are nested too deep".into());
        match self.signal() {
            Some(Signal::SIGPROF | Signal::SIGXCPU) => time(),
            // Nobody but us and the kernel can kill it, and we did not.
            Some(Signal::SIGKILL) => memory(),
            // It called abort(3), which its cage does not know.
            Some(Signal::SIGSYS) if self.complaint.contains("overflowed its stack") => depth(),
            Some(Signal::SIGSYS) if self.complaint.contains("memory allocation") => memory(),
            Some(Signal::SIGSEGV | Signal::SIGBUS) => depth(),
            _ => {
                tracing::error!(death = %self, "a sandbox ended in a way that it should not");
                let message = format!("{file}: the sandbox ended unexpectedly: {self}");
                Failure::new(Code::Internal, message)
            }
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(WaitStatus::Signaled(_, Signal::SIGSYS, _)) => {
                f.write_str("killed for a system call that evaluation does not need")?;
            }
            Some(WaitStatus::Signaled(_, signal, _)) => write!(f, "killed by {signal}")?,
            Some(WaitStatus::Exited(_, code)) => write!(f, "it ended with exit status {code}")?,
            Some(status) => write!(f, "{status:?}")?,
            None => f.write_str("it does not keep to the protocol")?,
        }
        let words = self.complaint.trim();
        if words.is_empty() {
            return Ok(());
        }
        let words: String = words.chars().take(300).filter(|c| !c.is_control()).collect();
        write!(f, " ({words})")
    }
}
