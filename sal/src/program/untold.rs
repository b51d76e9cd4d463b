//! What programs came to by themselves, and who was told of it.

use rhizome_model::{Drift, Drifted, Repair};
use serde::{Deserialize, Serialize};

use super::place::Place;
use crate::error::{Result, SalError};
use crate::files;
use crate::lock::Lock;

/// What of its ends was told.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    number: u64,
}

/// What a program came to by itself and nobody has told of yet. While this is there nobody else is
/// given it.
pub struct Untold {
    /// Unix milliseconds, and what happened; the oldest first.
    pub ends: Vec<(i64, Drifted)>,
    place: Place,
    number: u64,
    _lock: Lock,
}

impl Untold {
    /// From now on they are told.
    pub fn told(self) -> std::result::Result<(), SalError> {
        files::replace_json(&told_file(&self.place), &Told { number: self.number }, false)
    }
}

pub(super) fn untold(place: Place) -> Result<Option<Untold>> {
    if !has_untold(&place) {
        return Ok(None);
    }
    let lock = Lock::take(&place.dir.join("told.lock"))?;
    let told = told(&place);
    let Some(record) = place.record() else { return Ok(None) };
    let ends: Vec<_> = record.ends.iter().filter(|end| end.number > told).collect();
    let Some(number) = ends.last().map(|end| end.number) else { return Ok(None) };
    let ends = ends.iter().map(|end| {
        let drifted = Drifted {
            drift: Drift::Ended,
            action: if end.pause_ms.is_some() { Repair::Waits } else { Repair::Left },
            cause: Some(end.reason.clone()),
            retry_in_ms: end.pause_ms,
        };
        (end.at, drifted)
    });
    Ok(Some(Untold { ends: ends.collect(), number, place, _lock: lock }))
}

pub(super) fn has_untold(place: &Place) -> bool {
    let newest = place.record().and_then(|r| r.ends.last().map(|end| end.number));
    newest.is_some_and(|newest| newest > told(place))
}

fn told(place: &Place) -> u64 {
    files::read_json::<Told>(&told_file(place)).unwrap_or_default().number
}

fn told_file(place: &Place) -> std::path::PathBuf {
    place.dir.join("told.json")
}
