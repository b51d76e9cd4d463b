//! Making machines, and changing them in place.

use std::fs;
use std::path::PathBuf;
use std::thread::ScopedJoinHandle;

use rhizome_model::kind::{Isolation, Kind as _, Machine, MachineSpec};
use rhizome_model::{Code, ResourceId};

use super::vm::NewDisk;
use super::{Driver, identity};
use crate::btrfs::{self, Counted};
use crate::error::{During, Result, SalError, shown};
use crate::lock::Lock;
use crate::net::{self, Port};
use crate::oci::Bind;
use crate::program::{Entry, Past, Place, Program, Stop};
use crate::{files, image, sal};

/// In the folder of a machine whose link has yet to be admitted.
const UNADMITTED: &str = "unadmitted";

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

    /// Makes all that the program needs and waits until it runs. What there was goes, but for the root
    /// when there is no source for another.
    pub(super) fn bring_up(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        source: Option<&Source>,
        past: Past,
    ) -> Result<()> {
        match source {
            None => self.programs.halt(id, Stop::Interrupt)?,
            Some(_) => crate::workload::Driver::delete(self, id)?,
        }
        let (config, mark, port) = (&self.node.config, &self.programs.mark, port(spec));
        // The file system waits for its transaction, the network for `ip`, the shim for the loader: all at
        // a time.
        std::thread::scope(|scope| {
            let files = scope.spawn(|| self.make_files(id, place, spec, source));
            let net = scope.spawn(|| match spec.isolation {
                Isolation::Container => port.attach(config, mark, id),
                Isolation::Vm => port.connect(config, mark, id),
            });
            let shim = self.programs.call_shim(id, entry(spec))?;
            let (program, _volumes) = joined(files)?;
            joined(net)?;
            place.write_applied(spec)?;
            match spec.isolation {
                Isolation::Container => self.programs.start(id, shim, &program, past),
                Isolation::Vm => {
                    // Before it has booted, a guest sends nothing.
                    files::replace(&place.dir.join(UNADMITTED), b"", false)?;
                    let admission = scope.spawn(|| self.admit(id, place));
                    self.programs.start(id, shim, &program, past)?;
                    joined(admission)
                }
            }
        })
    }

    fn admit(&self, id: &ResourceId, place: &Place) -> Result<()> {
        net::admit(&self.node.config, &self.programs.mark, id)?;
        files::remove(&place.dir.join(UNADMITTED))
    }

    /// Whoever started a guest may have died before its link was admitted.
    pub(super) fn finish_admission(&self, id: &ResourceId, place: &Place) -> Result<()> {
        if place.dir.join(UNADMITTED).exists() { self.admit(id, place) } else { Ok(()) }
    }

    /// Makes what is on disk, and says what is to be kept alive. The volumes are held until it runs.
    fn make_files(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
        source: Option<&Source>,
    ) -> Result<(Program, Vec<Lock>)> {
        match source {
            Some(source) => {
                self.fill_root(place, spec, source)?;
                btrfs::write_note(&place.new_root, &identity(spec))?;
                fs::rename(&place.new_root, &place.root)
                    .during(format_args!("name {}", shown(&place.root)))?;
            }
            None if spec.isolation == Isolation::Container => {
                self.node.store.limit(&place.root, Counted::Own, spec.disk)?;
            }
            None => {}
        }
        let volumes = self.hold_volumes(id, spec)?;
        files::make_folder(&place.dir)?;
        let program = match spec.isolation {
            Isolation::Container => self.container(id, place, spec)?,
            Isolation::Vm => self.vm(id, place, spec)?,
        };
        Ok((program, volumes))
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

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    let broke_off = |_| Err(SalError::new(Code::Internal, "making a part of a machine broke off"));
    thread.join().unwrap_or_else(broke_off)
}

fn entry(spec: &MachineSpec) -> Entry {
    match spec.isolation {
        Isolation::Container => Entry::Moved,
        Isolation::Vm => Entry::Born,
    }
}

/// What the node's bridge has for it.
pub(super) fn port(spec: &MachineSpec) -> Port {
    match spec.isolation {
        Isolation::Container => Port::Veth,
        Isolation::Vm => Port::Tap,
    }
}
