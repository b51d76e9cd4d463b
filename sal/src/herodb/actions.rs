//! Named actions of a database.

use rhizome_model::{Action, Code, ResourceId};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{Applied, Driver};
use crate::error::{Result, SalError};
use crate::program::{Controls, Past, Place, Programs};
use crate::workload::{Sink, no_such_action, to_value};

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
    let database = Database { driver, id, place, applied };
    match action {
        Action::Start => database.start(),
        Action::Stop => database.stop(),
        Action::Restart => database.restart(by),
        Action::Logs { tail, follow } => driver.programs.logs(id, *tail, *follow, sink, cancel),
        Action::Exec { .. }
        | Action::Wait
        | Action::Snapshot { .. }
        | Action::Restore { .. }
        | Action::DropSnapshot { .. }
        | Action::Resize { .. } => Err(no_such_action(id, action)),
    }
}

/// A database that is there.
struct Database<'a> {
    driver: &'a Driver,
    id: &'a ResourceId,
    place: Place,
    applied: Applied,
}

impl Controls for Database<'_> {
    fn programs(&self) -> &Programs {
        &self.driver.programs
    }

    fn id(&self) -> &ResourceId {
        self.id
    }

    fn place(&self) -> &Place {
        &self.place
    }

    fn begin(&self, past: Past) -> Result<()> {
        let Self { driver, id, place, applied } = self;
        driver.check(id, &applied.spec)?;
        let shim = driver.make(id, place, &applied.spec)?;
        driver.start(id, place, &applied.spec, past, shim)
    }

    fn status(&self) -> Result<Value> {
        to_value(self.driver.status(self.id, &self.place)?)
    }
}
