//! What can go wrong between us and a hypervisor.

use std::fmt;
use std::time::Duration;

use rhizome_model::Code;

use super::config::Driver;
use crate::error::SalError;

pub(super) type Answer<T> = Result<T, Fault>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody listens.
    Away(String),
    /// It is there and does not answer.
    Hangs(Duration),
    /// It said no.
    Refused(Refusal),
    /// It went away in the middle of an answer.
    Broken(String),
    /// It answers what we do not understand.
    Strange(String),
}

/// A hypervisor's no, from the general to the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub kind: Kind,
    /// The status of the HTTP answer, where there is one.
    pub status: Option<u16>,
    pub chain: Vec<String>,
}

/// What a caller does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no such machine or device.
    NotFound,
    /// There is one already.
    Exists,
    /// Not in the state that the machine is in.
    WrongState,
    /// What was asked for makes no sense.
    Invalid,
    Failed,
}

impl Fault {
    pub fn during(self, driver: Driver, what: &str) -> SalError {
        SalError::new(self.code(), format!("{driver} {self} ({what})"))
    }

    pub fn code(&self) -> Code {
        match self {
            Self::Away(_) | Self::Broken(_) => Code::Unavailable,
            Self::Hangs(_) => Code::TimedOut,
            Self::Strange(_) => Code::ToolFailed,
            Self::Refused(refusal) => match refusal.kind {
                Kind::NotFound => Code::NotFound,
                Kind::Exists | Kind::WrongState => Code::Conflict,
                Kind::Invalid => Code::InvalidSpec,
                Kind::Failed => Code::ToolFailed,
            },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(why) => write!(f, "is not there: {why}"),
            Self::Hangs(after) => write!(f, "does not answer within {after:.1?}: it hangs"),
            Self::Refused(refusal) => write!(f, "refuses: {refusal}"),
            Self::Broken(why) => write!(f, "went away: {why}"),
            Self::Strange(why) => write!(f, "answers what cannot be understood: {why}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (true, Some(status)) = (self.chain.is_empty(), self.status) {
            return write!(f, "status {status}");
        }
        f.write_str(&self.chain.join(": "))
    }
}
