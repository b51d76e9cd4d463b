//! What went wrong: what we tried, on what, and what to do about it.

use std::fmt;
use std::path::Path;

use nix::errno::Errno;
use rhizome_model::{Code, Failure};

/// An operation on the node failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SalError {
    code: Code,
    message: String,
    detail: Option<String>,
}

pub(crate) type Result<T> = std::result::Result<T, SalError>;

impl SalError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None }
    }

    /// Adds the last lines that a program printed.
    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        self.detail = (!detail.trim().is_empty()).then_some(detail);
        self
    }

    pub fn code(&self) -> Code {
        self.code
    }

    /// The last lines of the tool or machine that it is about.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// Whether the same call may succeed later without anybody changing the request.
    pub fn is_retryable(&self) -> bool {
        matches!(self.code, Code::ToolFailed | Code::TimedOut | Code::Unavailable | Code::Internal)
    }
}

impl From<SalError> for Failure {
    fn from(error: SalError) -> Self {
        let failure = Self::new(error.code, error.message);
        match error.detail {
            Some(detail) => failure.with_detail(detail),
            None => failure,
        }
    }
}

/// Says what was tried when the system says no.
pub(crate) trait During<T> {
    fn during(self, what: impl fmt::Display) -> Result<T>;
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| {
            let (code, hint) = match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOSPC) => {
                    (Code::PoolFull, "; the pool is full: delete something or add a disk")
                }
                Some(Errno::EDQUOT) => {
                    (Code::QuotaExceeded, "; the resource is at its limit: ask for more")
                }
                Some(Errno::EROFS | Errno::EACCES | Errno::EPERM) => (
                    Code::StateNotWritable,
                    "; run as root, with a state folder that can be written",
                ),
                _ => (Code::Internal, ""),
            };
            SalError::new(code, format!("{what}: {e}{hint}"))
        })
    }
}

impl<T> During<T> for nix::Result<T> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(std::io::Error::from).during(what)
    }
}

/// A path in a message.
pub(crate) fn shown(path: &Path) -> impl fmt::Display + '_ {
    path.display()
}
