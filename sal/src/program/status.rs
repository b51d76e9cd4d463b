//! What a program's record says of it.

use rhizome_model::ResourceId;
use rhizome_model::kind::{Health, MachineState};

use super::Programs;
use super::life::{Life, Record};

/// How a program is; times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProgramStatus {
    pub state: MachineState,
    pub health: Health,
    pub pid: Option<u32>,
    pub exit_code: Option<i32>,
    pub last_exit: Option<String>,
    pub restarts: u32,
    pub next_start_at: Option<i64>,
    pub started_at: Option<i64>,
}

impl Programs {
    pub fn status(&self, id: &ResourceId) -> ProgramStatus {
        let place = self.place(id);
        let record = place.record();
        let lives = place.shim().is_some();
        let (state, health) = state_of(record.as_ref(), lives);
        let living = record.as_ref().filter(|_| lives);
        ProgramStatus {
            state,
            health,
            pid: living.and_then(|r| u32::try_from(r.life.pid()?).ok()),
            next_start_at: living.and_then(Record::next_start_at),
            exit_code: record.as_ref().and_then(|r| r.exit_code),
            last_exit: record.as_ref().and_then(|r| r.last_exit().map(str::to_owned)),
            restarts: record.as_ref().map_or(0, |r| r.restarts),
            started_at: record.as_ref().and_then(|r| r.started_at),
        }
    }
}

/// What a record means, given whether its shim lives.
fn state_of(record: Option<&Record>, lives: bool) -> (MachineState, Health) {
    let failing = |reason: &str| Health::Failing { reason: reason.to_owned() };
    let lost = || {
        (
            MachineState::Exited,
            failing("the process that watches it is gone; it starts again when it is ensured"),
        )
    };
    let Some(record) = record else { return lost() };
    match &record.life {
        Life::Exited { .. } if record.exit_code == Some(0) => (MachineState::Exited, Health::Good),
        Life::Exited { reason } | Life::Failed { reason } => {
            (MachineState::Exited, failing(reason))
        }
        Life::Stopped => (MachineState::Stopped, Health::Good),
        _ if !lives => lost(),
        Life::Starting { .. } => (MachineState::BackingOff, failing("it is being started")),
        Life::Running { .. } => (MachineState::Running, Health::Good),
        Life::Stopping { .. } => (MachineState::Running, failing("it is being stopped")),
        Life::BackingOff { reason, .. } => (MachineState::BackingOff, failing(reason)),
        Life::Interrupted => lost(),
    }
}
