//! Named actions of a database.

use rhizome_model::{Action, Code, ResourceId};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Applied, Driver};
use crate::error::{Result, SalError};
use crate::program::Place;
use crate::workload::{Sink, no_such_action};

pub(super) fn act(
    driver: &Driver,
    id: &ResourceId,
    action: &Action,
    by: &str,
    sink: Sink<'_>,
    cancel: &CancellationToken,
) -> Result<Value> {
    let place = driver.programs.place(id);
    let applied: Option<Applied> = place.applied();
    let applied = applied.filter(|_| driver.node.store.has(&place.root)).ok_or_else(|| {
        SalError::new(Code::NotFound, format!("there is no herodb {id} on this node"))
    })?;
    match action {
        Action::Start => start(driver, id, &place, &applied),
        Action::Stop => {
            driver.programs.stop(id)?;
            status(driver, id, &place)
        }
        Action::Restart => {
            if !place.is_restarted_by(by) {
                driver.programs.stop(id)?;
                place.note_restart(by)?;
            }
            start(driver, id, &place, &applied)
        }
        Action::Logs { tail, follow } => driver.programs.logs(id, *tail, *follow, sink, cancel),
        Action::Exec { .. }
        | Action::Wait
        | Action::Snapshot { .. }
        | Action::Restore { .. }
        | Action::DropSnapshot { .. }
        | Action::Resize { .. } => Err(no_such_action(id, action)),
    }
}

fn start(driver: &Driver, id: &ResourceId, place: &Place, applied: &Applied) -> Result<Value> {
    // A shim that has written an end is about to go.
    driver.programs.is_settled(id)?;
    if place.shim().is_none() {
        driver.check(id, &applied.spec)?;
        let past = place.past_by_request();
        driver.make(id, place, &applied.spec)?;
        driver.start(id, place, &applied.spec, past)?;
    }
    status(driver, id, place)
}

fn status(driver: &Driver, id: &ResourceId, place: &Place) -> Result<Value> {
    let status = driver.status(id, place)?;
    serde_json::to_value(status)
        .map_err(|e| SalError::new(Code::Internal, format!("write a status as JSON: {e}")))
}
