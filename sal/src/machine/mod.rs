//! `machine`: something that runs, with its own root file system, limits and IPv6 address: a container,
//! or a virtual machine ([`vm`]).
//!
//! ```text
//!   image ──snapshot──▶ <pool>/machines/…  ─┐
//!   volumes ──────────── bind mounts ───────┼─▶ OCI bundle ──▶ shim ──▶ runtime ──▶ program
//!   netns, links ───────────────────────────┘
//! ```
//!
//! - The root gets its name when it is whole: limited, and marked with the identity of
//!   the spec that it was made for. As long as spec and identity agree it is kept, over restarts of
//!   the program and of the node; otherwise the machine is replaced.
//! - The rest (namespace, groups, bundle, shim) is made anew whenever no shim lives, after what an
//!   earlier attempt has left is cleared away. So any step may be the last before a crash.
//! - A machine that ended by its own policy, or was stopped on request, stays so.

mod actions;
mod container;
mod keep;
mod make;
mod users;
mod vm;

use std::sync::Arc;

use rhizome_model::kind::{
    Change, Health, Isolation, Kind as _, Machine, MachineSpec, MachineStatus, change,
};
use rhizome_model::{Action, Done, Drifted, ResourceId, WorkloadKind, resource_address};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::btrfs::{self, Counted};
use crate::error::Result;
use crate::node::Node;
use crate::oci::Runtime;
use crate::program::{Past, Place, Programs, Untold};
use crate::workload::{Found, Notice, Sink};

pub(crate) use self::users::user_of;
pub(crate) use self::vm::VOLUME_DISK;

pub(crate) struct Driver {
    node: Arc<Node>,
    programs: Programs,
}

impl crate::workload::Driver for Driver {
    type Kind = Machine;

    fn new(node: Arc<Node>) -> Self {
        let programs = Programs::new(node.clone(), WorkloadKind::Machine);
        Self { node, programs }
    }

    fn works_with(node: &Node) -> Option<String> {
        let containers = match Runtime::find(node) {
            Ok(runtime) => format!("{} ({})", runtime.name(), runtime.program().display()),
            Err(error) => error.to_string(),
        };
        Some(format!("{containers}; {}", vm::works_with()))
    }

    fn ensure(&self, id: &ResourceId, spec: &MachineSpec) -> Result<(MachineStatus, Done)> {
        let place = self.programs.place(id);
        self.finish_admission(id, &place)?;
        let has_root = self.node.store.has(&place.root);
        let keeps_root =
            has_root && btrfs::read_note(&place.root).as_deref() == Some(&identity(spec));
        let applied: Option<MachineSpec> = place.applied();
        let change = applied.as_ref().map(|applied| change::<Machine>(applied, spec));
        if let (true, Some(applied), Some(Change::None | Change::Update(_))) =
            (keeps_root, &applied, &change)
            && self.programs.is_settled(id)?
        {
            let changes = applied != spec;
            if changes {
                self.adjust(id, &place, applied, spec)?;
            }
            let done = if changes { Done::Updated } else { Done::Unchanged };
            return Ok((self.status(id, &place)?, done));
        }
        let done = match (has_root, keeps_root, &change) {
            (false, _, _) | (true, true, None | Some(Change::Replace { .. })) => Done::Created,
            (true, false, _) => Done::Replaced,
            (true, true, Some(Change::None)) => Done::Restored,
            (true, true, Some(Change::Update(_))) => Done::Updated,
        };
        self.check(id, &place, spec)?;
        // Before anything of the old machine goes: it stays when its new image is no good.
        let source = if keeps_root { None } else { Some(self.obtain(spec)?) };
        let past = if keeps_root { place.past() } else { Past::default() };
        let started = self.bring_up(id, &place, spec, source.as_ref(), past);
        if let (Err(_), false) = (&started, keeps_root) {
            // Nothing of it was there before, and nothing is left of it.
            if let Err(error) = crate::workload::Driver::delete(self, id) {
                tracing::warn!(machine = %id, %error, "what is left of a machine stays");
            }
        }
        started?;
        Ok((self.status(id, &place)?, done))
    }

    fn applied(&self, id: &ResourceId) -> Result<Option<MachineSpec>> {
        Ok(self.programs.place(id).applied())
    }

    fn observe(&self, id: &ResourceId) -> Result<Option<MachineStatus>> {
        let place = self.programs.place(id);
        match place.applied::<MachineSpec>() {
            Some(_) if self.node.store.has(&place.root) => self.status(id, &place).map(Some),
            _ => Ok(None),
        }
    }

    fn delete(&self, id: &ResourceId) -> Result<()> {
        let place = self.programs.place(id);
        // What it would still write goes with it.
        if place.applied::<MachineSpec>().is_some_and(|spec| vm::is_apart(&spec)) {
            self.programs.cgroups.clear(id)?;
        }
        self.programs.forget(id)?;
        self.node.store.delete(&place.new_root)?;
        self.node.store.delete(&place.root)
    }

    fn list(&self) -> Result<Vec<ResourceId>> {
        self.programs.list()
    }

    fn drift(&self, id: &ResourceId, spec: &MachineSpec) -> Result<Vec<Found>> {
        self.find_drift(id, spec)
    }

    fn mend(&self, id: &ResourceId, spec: &MachineSpec, found: Found) -> Result<Drifted> {
        self.mend_drift(id, spec, found)
    }

    fn untold(&self, id: &ResourceId) -> Result<Option<Untold>> {
        self.programs.untold(id)
    }

    fn watch(&self) -> Result<Option<mpsc::Receiver<Notice>>> {
        self.programs.watch().map(Some)
    }

    fn changes(action: &Action) -> bool {
        match action {
            Action::Start | Action::Stop | Action::Restart => true,
            Action::Exec { .. }
            | Action::Wait
            | Action::Logs { .. }
            | Action::Snapshot { .. }
            | Action::Restore { .. }
            | Action::DropSnapshot { .. }
            | Action::Resize { .. } => false,
        }
    }

    fn act(
        &self,
        id: &ResourceId,
        action: &Action,
        by: &str,
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<Value> {
        actions::act(self, id, action, by, sink, cancel)
    }
}

impl Driver {
    fn status(&self, id: &ResourceId, place: &Place) -> Result<MachineStatus> {
        let mut program = self.programs.status(id);
        let spec: Option<MachineSpec> = place.applied();
        let (disk_used, _) = self.node.store.usage(&place.root, Counted::Own)?;
        let driver = match spec.map(|spec| spec.isolation) {
            Some(Isolation::Vm) => {
                if program.health == Health::Good && program.pid.is_some() {
                    let hang = self.hang(place).map(|reason| Health::Failing { reason });
                    program.health = hang.unwrap_or(Health::Good);
                }
                vm::driver()
            }
            Some(Isolation::Container) | None => {
                Runtime::find(&self.node).map_or("", |r| r.name()).to_owned()
            }
        };
        Ok(MachineStatus {
            state: program.state,
            health: program.health,
            address: resource_address(self.node.config.address, id),
            hostname: id.name.to_string(),
            driver,
            pid: program.pid,
            exit_code: program.exit_code,
            last_exit: program.last_exit,
            restarts: program.restarts,
            next_start_at: program.next_start_at,
            started_at: program.started_at,
            disk_used,
        })
    }
}

/// What a root file system is made for: all of a spec that cannot change in place.
fn identity(spec: &MachineSpec) -> String {
    let json = serde_json::to_vec(&Machine::fixed(spec)).expect("a spec has only text keys");
    blake3::hash(&json).to_hex().to_string()
}
