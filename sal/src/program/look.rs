//! Who sees to a program.

use std::time::{Duration, Instant};

use rhizome_model::{Code, ResourceId};

use super::life::{Life, Record};
use super::place::booted_at;
use super::{Programs, STEP};
use crate::error::{Result, SalError};
use crate::net;

/// A shim writes down an end within this.
const NOTED_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Watched {
    /// A shim, also while there is no process.
    By { pid: Option<i32> },
    /// Nobody, and nobody should: it ended for good, or was stopped on request.
    Rests,
    /// Nobody, and why.
    Lost(String),
}

impl Watched {
    pub fn pid(&self) -> Option<i32> {
        match self {
            Self::By { pid } => *pid,
            Self::Rests | Self::Lost(_) => None,
        }
    }
}

impl Programs {
    /// Looks at a program, and at what is around it, in one state of it: around one that ended
    /// meanwhile everything seems to be gone, so then it is looked at again.
    pub fn look<T>(&self, id: &ResourceId, mut see: impl FnMut(Watched) -> Result<T>) -> Result<T> {
        let place = self.place(id);
        loop {
            let watched = self.watched(id)?;
            let pid = watched.pid();
            let seen = see(watched)?;
            if pid.is_none_or(net::is_inside) {
                return Ok(seen);
            }
            let deadline = Instant::now() + NOTED_WITHIN;
            while place.pid() == pid && place.shim().is_some() {
                if Instant::now() > deadline {
                    let message = format!(
                        "the end of {} {id} was not noted within {NOTED_WITHIN:?}",
                        self.kind
                    );
                    return Err(SalError::new(Code::TimedOut, message));
                }
                std::thread::sleep(STEP);
            }
        }
    }

    fn watched(&self, id: &ResourceId) -> Result<Watched> {
        let settled = self.is_settled(id)?;
        let place = self.place(id);
        Ok(match (settled, place.shim().is_some()) {
            (true, true) => Watched::By { pid: place.pid() },
            (true, false) => Watched::Rests,
            (false, _) => Watched::Lost(loss(place.record().as_ref())),
        })
    }
}

fn loss(record: Option<&Record>) -> String {
    match record {
        None => "nothing is known of its last run".into(),
        Some(record) => match &record.life {
            Life::Failed { reason } => reason.clone(),
            Life::Interrupted => "the node had stopped it".into(),
            _ if record.is_before(booted_at()) => "the node was booted".into(),
            _ => "the process that watched it is gone".into(),
        },
    }
}
