//! Making machines, and changing them in place.

use std::fs;
use std::path::Path;

use rhizome_model::kind::MachineSpec;
use rhizome_model::{Bytes, Code, ResourceId};

use super::container::limits;
use super::{Driver, identity};
use crate::btrfs::{self, Counted};
use crate::error::{During, Result, SalError, shown};
use crate::oci::{Bind, Runtime};
use crate::program::{Past, Place, Stop};
use crate::{files, net, sal};

impl Driver {
    /// What can be known to fail before anything is made.
    pub(super) fn check(&self, id: &ResourceId, spec: &MachineSpec) -> Result<()> {
        let room = sal::disk(&self.node.store)?;
        if spec.disk > room {
            return Err(SalError::new(
                Code::PoolFull,
                format!(
                    "machine {id} with a disk of {} does not fit into the node's pool of {room}: ask for less",
                    spec.disk
                ),
            ));
        }
        for Bind { source, path, .. } in self.mounts(id, spec) {
            if !self.node.store.has(&source) {
                let name =
                    source.file_name().unwrap_or_default().to_string_lossy().replace('.', "/");
                return Err(SalError::new(
                    Code::NotFound,
                    format!(
                        "machine {id} mounts volume {name} on {path}, and there is no such volume: declare it first"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Makes the rest of a machine whose root file system is there.
    pub(super) fn revive(&self, id: &ResourceId, place: &Place, spec: &MachineSpec) -> Result<()> {
        self.programs.halt(id, Stop::Interrupt)?;
        self.node.store.limit(&place.root, Counted::Own, spec.disk)?;
        net::attach(&self.node.config, &self.programs.mark, id)
    }

    /// Clears away whatever there was, and makes root file system and network.
    pub(super) fn make_anew(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        image: &Path,
    ) -> Result<()> {
        crate::workload::Driver::delete(self, id)?;
        let store = &self.node.store;
        // The file system waits for its transaction, the network for `ip`: both at a time.
        std::thread::scope(|scope| {
            let root = scope.spawn(|| {
                store.snapshot(image, &place.new_root)?;
                store.limit(&place.new_root, Counted::Own, spec.disk)?;
                btrfs::write_note(&place.new_root, &identity(spec))?;
                fs::rename(&place.new_root, &place.root)
                    .during(format_args!("name {}", shown(&place.root)))
            });
            let net = net::attach(&self.node.config, &self.programs.mark, id);
            let root = root.join().unwrap_or_else(|_| {
                Err(SalError::new(Code::Internal, "making a root file system broke off"))
            });
            root.and(net)
        })
    }

    /// Starts the program and waits until it runs.
    pub(super) fn start(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        past: Past,
    ) -> Result<()> {
        let _volumes = self.share_volumes(id, spec)?;
        files::make_folder(&place.dir)?;
        let program = self.container(id, place, spec)?;
        place.write_applied(spec)?;
        self.programs.start(id, &program, past)
    }

    /// Takes a changed spec over without replacing the machine: limits, disk, restart policy.
    pub(super) fn adjust(
        &self,
        id: &ResourceId,
        place: &Place,
        old: &MachineSpec,
        new: &MachineSpec,
    ) -> Result<()> {
        self.check(id, new)?;
        if new.disk != old.disk {
            self.resize(id, place, old.disk, new.disk)?;
        }
        self.write_bundle(id, place, new)?;
        if limits(new) != limits(old) && place.pid().is_some() {
            Runtime::find(&self.node)?.update(place, &limits(new))?;
        }
        if new.restart != old.restart {
            self.programs.set_restart(id, new.restart)?;
        }
        place.write_applied(new)
    }

    fn resize(&self, id: &ResourceId, place: &Place, from: Bytes, to: Bytes) -> Result<()> {
        let store = &self.node.store;
        if to < from {
            store.sync()?;
            let (used, _) = store.usage(&place.root, Counted::Own)?;
            if used > to {
                return Err(SalError::new(
                    Code::QuotaExceeded,
                    format!(
                        "the disk of machine {id} holds {used} and cannot shrink to {to}: remove files first"
                    ),
                ));
            }
        }
        store.limit(&place.root, Counted::Own, to)
    }
}
