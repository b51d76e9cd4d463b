//! Making machines, and changing them in place.

use std::fs;
use std::path::PathBuf;

use rhizome_model::kind::{Isolation, Kind as _, Machine, MachineSpec};
use rhizome_model::{Code, ResourceId};

use super::vm::NewDisk;
use super::{Driver, identity};
use crate::btrfs::{self, Counted};
use crate::error::{During, Result, SalError, shown};
use crate::net::Port;
use crate::oci::Bind;
use crate::program::{Past, Place, Stop};
use crate::{files, image, sal};

/// What a machine is made from, on the node.
pub(super) enum Source {
    /// The subvolume of an image.
    Tree(PathBuf),
    Disks(Vec<NewDisk>),
}

impl Driver {
    /// What can be known to fail before anything is made.
    pub(super) fn check(&self, id: &ResourceId, place: &Place, spec: &MachineSpec) -> Result<()> {
        let room = sal::disk(&self.node.store)?;
        let disk = Machine::demand(spec).disk;
        if disk > room {
            return Err(SalError::new(
                Code::PoolFull,
                format!(
                    "machine {id} with a disk of {disk} does not fit into the node's pool of {room}: ask for less"
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
        match spec.isolation {
            Isolation::Container => Ok(()),
            Isolation::Vm => self.check_vm(id, place, spec),
        }
    }

    /// Brings what a machine is made from to the node.
    pub(super) fn obtain(&self, spec: &MachineSpec) -> Result<Source> {
        match spec.isolation {
            Isolation::Container => {
                let image = spec.image.as_deref().unwrap_or_default();
                image::obtain(&self.node, image).map(Source::Tree)
            }
            Isolation::Vm => NewDisk::all(self, spec).map(Source::Disks),
        }
    }

    /// Makes the rest of a machine whose root is there.
    pub(super) fn revive(&self, id: &ResourceId, place: &Place, spec: &MachineSpec) -> Result<()> {
        self.programs.halt(id, Stop::Interrupt)?;
        if spec.isolation == Isolation::Container {
            self.node.store.limit(&place.root, Counted::Own, spec.disk)?;
        }
        port(spec).attach(&self.node.config, &self.programs.mark, id)
    }

    /// Clears away whatever there was, and makes root and network.
    pub(super) fn make_anew(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        source: &Source,
    ) -> Result<()> {
        crate::workload::Driver::delete(self, id)?;
        // The file system waits for its transaction, the network for `ip`: both at a time.
        std::thread::scope(|scope| {
            let root = scope.spawn(|| {
                self.fill_root(place, spec, source)?;
                btrfs::write_note(&place.new_root, &identity(spec))?;
                fs::rename(&place.new_root, &place.root)
                    .during(format_args!("name {}", shown(&place.root)))
            });
            let net = port(spec).attach(&self.node.config, &self.programs.mark, id);
            let root = root.join().unwrap_or_else(|_| {
                Err(SalError::new(Code::Internal, "making a root file system broke off"))
            });
            root.and(net)
        })
    }

    fn fill_root(&self, place: &Place, spec: &MachineSpec, source: &Source) -> Result<()> {
        let (store, new) = (&self.node.store, &place.new_root);
        match source {
            Source::Tree(image) => {
                store.snapshot(image, new)?;
                store.limit(new, Counted::Own, spec.disk)
            }
            Source::Disks(disks) => {
                store.create(new)?;
                btrfs::without_cow(new)?;
                disks.iter().try_for_each(|disk| disk.make(new))
            }
        }
    }

    /// Starts the program and waits until it runs.
    pub(super) fn start(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        past: Past,
    ) -> Result<()> {
        let _volumes = self.hold_volumes(id, spec)?;
        files::make_folder(&place.dir)?;
        let program = match spec.isolation {
            Isolation::Container => self.container(id, place, spec)?,
            Isolation::Vm => self.vm(id, place, spec)?,
        };
        place.write_applied(spec)?;
        self.programs.start(id, &program, past)
    }

    /// Takes a changed spec over without replacing the machine.
    pub(super) fn adjust(
        &self,
        id: &ResourceId,
        place: &Place,
        old: &MachineSpec,
        new: &MachineSpec,
    ) -> Result<()> {
        self.check(id, place, new)?;
        match new.isolation {
            Isolation::Container => self.adjust_container(id, place, old, new),
            Isolation::Vm => self.adjust_vm(id, place, old, new),
        }
    }
}

/// What the node's bridge has for it.
pub(super) fn port(spec: &MachineSpec) -> Port {
    match spec.isolation {
        Isolation::Container => Port::Veth,
        Isolation::Vm => Port::Tap,
    }
}
