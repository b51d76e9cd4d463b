//! What went wrong: what we tried, on what, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// An image could not be built. What stands at its place is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EfiError {
    /// An input is there, and is not what it must be.
    #[error("{what} cannot be used: {why}")]
    Unusable { what: String, why: String },
    /// An input has more than fits.
    #[error("{what} has {bytes} bytes; an image and its parts have at most {limit}")]
    TooLarge { what: String, bytes: u64, limit: u64 },
    /// An input cannot be read. The hint begins with "; " or is empty.
    #[error("cannot read {}{hint}", path.display())]
    Unreadable { path: PathBuf, hint: String, source: io::Error },
    /// The image cannot be written.
    #[error("cannot write {what}")]
    Unwritable { what: String, source: io::Error },
}

impl EfiError {
    pub(crate) fn unusable(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unusable { what: what.into(), why: why.into() }
    }

    pub(crate) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Unreadable { path: path.into(), hint: String::new(), source }
    }

    pub(crate) fn writing(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Unwritable { what: what.into(), source }
    }
}
