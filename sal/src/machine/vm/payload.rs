//! What a virtual machine boots: copied beside its disks, so that it starts again without the image.

use std::fs;
use std::path::{Path, PathBuf};

use rhizome_model::kind::Boot;

use super::super::Driver;
use crate::btrfs;
use crate::error::{During, Result, shown};
use crate::program::Place;
use crate::{files, image, vm};

pub(super) fn kernel(place: &Place) -> PathBuf {
    place.root.join("kernel")
}

pub(super) fn initramfs(place: &Place) -> PathBuf {
    place.root.join("initramfs")
}

/// Says what was copied, and is there when all of it is.
fn note(place: &Place) -> PathBuf {
    place.root.join("boot.json")
}

impl Driver {
    /// Whether what is to be booted is there and can be, before anything of the old goes.
    pub(super) fn check_payload(&self, place: &Place, boot: &Boot) -> Result<()> {
        if is_copied(place, boot) {
            return Ok(());
        }
        vm::check_kernel(&image::obtain_raw(&self.node, &boot.kernel)?)?;
        match &boot.initramfs {
            Some(initramfs) => vm::check_initramfs(&image::obtain_raw(&self.node, initramfs)?),
            None => Ok(()),
        }
    }

    pub(super) fn copy_payload(&self, place: &Place, boot: &Boot) -> Result<()> {
        if is_copied(place, boot) {
            return Ok(());
        }
        files::remove(&note(place))?;
        let copy = |image: &str, path: &Path| -> Result<()> {
            let source = image::obtain_raw(&self.node, image)?;
            let new = files::with_suffix(path, ".new");
            btrfs::clone_file(&source, &new)?;
            fs::rename(&new, path).during(format_args!("name {}", shown(path)))
        };
        copy(&boot.kernel, &kernel(place))?;
        match &boot.initramfs {
            Some(image) => copy(image, &initramfs(place))?,
            None => files::remove(&initramfs(place))?,
        }
        // Should the power fail now, they are copied again.
        files::replace_json(&note(place), &urls(boot), false)
    }
}

fn is_copied(place: &Place, boot: &Boot) -> bool {
    files::read_json(&note(place)).as_ref() == Some(&urls(boot))
}

fn urls(boot: &Boot) -> (String, Option<String>) {
    (boot.kernel.clone(), boot.initramfs.clone())
}
