//! The disks of a virtual machine: raw files, its own and those in volumes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rhizome_model::kind::{MachineSpec, Volume};
use rhizome_model::{Bytes, Code, ResourceId};

use super::super::Driver;
use super::seed::CIDATA;
use crate::btrfs::{self, Counted};
use crate::error::{During, Result, SalError, shown};
use crate::image;
use crate::program::Place;
use crate::vm::Disk;

/// In a volume that is a disk.
pub(crate) const VOLUME_DISK: &str = "disk.raw";

/// A disk that is about to be made.
pub(in super::super) struct NewDisk {
    name: String,
    size: Bytes,
    image: Option<PathBuf>,
}

impl NewDisk {
    /// The machine's own disks, with their images on the pool.
    pub fn all(driver: &Driver, spec: &MachineSpec) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for (name, size, image) in spec.own_disks() {
            let image = image.map(|image| image::obtain_raw(&driver.node, image)).transpose()?;
            let disk = Self { name: name.to_owned(), size, image };
            disk.check()?;
            all.push(disk);
        }
        Ok(all)
    }

    fn check(&self) -> Result<()> {
        let Some(image) = &self.image else { return Ok(()) };
        let least = Bytes(length(image)?);
        if least <= self.size {
            return Ok(());
        }
        let message = format!(
            "the disk '{}' of {} is smaller than its image of {least}: ask for more",
            self.name, self.size
        );
        Err(SalError::new(Code::InvalidSpec, message))
    }

    /// Makes its file in a folder without copy-on-write.
    pub fn make(&self, folder: &Path) -> Result<()> {
        let path = folder.join(file_name(&self.name));
        let file = match &self.image {
            Some(image) => btrfs::clone_file(image, &path)?,
            None => File::create(&path).during(format_args!("make {}", shown(&path)))?,
        };
        file.set_len(self.size.0).during(format_args!("grow {}", shown(&path)))
    }
}

impl Driver {
    /// All disks, in the order in which the guest finds them.
    pub(super) fn disks(&self, id: &ResourceId, place: &Place, spec: &MachineSpec) -> Vec<Disk> {
        let own = spec.own_disks().into_iter().map(|(name, ..)| Disk {
            path: place.root.join(file_name(name)),
            serial: name.to_owned(),
            readonly: false,
        });
        let volumes = spec.mounts.iter().zip(self.mounts(id, spec)).map(|(mount, bind)| Disk {
            path: bind.source.join(VOLUME_DISK),
            serial: mount.volume.to_string(),
            readonly: mount.readonly,
        });
        let seed = Disk {
            path: place.root.join(file_name(CIDATA)),
            serial: CIDATA.to_owned(),
            readonly: true,
        };
        own.chain(volumes).chain([seed]).collect()
    }

    /// Disks that are declared larger than they are, and those of volumes, which are made here.
    pub(super) fn grow_disks(
        &self,
        id: &ResourceId,
        place: &Place,
        spec: &MachineSpec,
    ) -> Result<()> {
        for (name, size, _) in spec.own_disks() {
            grow(&place.root.join(file_name(name)), size)?;
        }
        for bind in self.mounts(id, spec) {
            let (_, limit) = self.node.store.usage(&bind.source, Counted::Referenced)?;
            let size = Volume::disk_in(limit.unwrap_or_default());
            if size == Bytes(0) {
                let message = format!(
                    "machine {id}: the volume for {} is too small for a disk: make it larger than {}",
                    bind.path,
                    Volume::LEAST_BESIDE_DISK
                );
                return Err(SalError::new(Code::InvalidSpec, message));
            }
            let path = bind.source.join(VOLUME_DISK);
            if !path.exists() {
                File::create(&path).during(format_args!("make {}", shown(&path)))?;
            }
            if length(&path)? == 0 {
                btrfs::without_cow(&path)?;
            }
            grow(&path, size)?;
        }
        Ok(())
    }
}

pub(super) fn file_name(disk: &str) -> String {
    format!("{disk}.raw")
}

fn length(path: &Path) -> Result<u64> {
    fs::metadata(path).map(|meta| meta.len()).during(format_args!("look at {}", shown(path)))
}

/// What is on a disk is never cut off.
fn grow(path: &Path, size: Bytes) -> Result<()> {
    if length(path)? >= size.0 {
        return Ok(());
    }
    File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_len(size.0))
        .during(format_args!("grow {}", shown(path)))
}
