//! What a volume and its snapshots take together.
//!
//! Simple quotas count an extent once, at who wrote it: what a snapshot keeps counts at the volume
//! that it was taken of, also when that has since been swapped for another. So all of them are in
//! one group of level 1, which has the limit. Quota groups before Linux 6.7 would have to look at
//! every extent again for that: there the volume has the limit, and snapshots are counted beside it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use btrfs_uapi::quota::{
    QgroupLimitFlags, qgroup_assign, qgroup_create, qgroup_destroy, qgroup_limit, qgroup_list,
    qgroup_remove,
};
use nix::errno::Errno;

use super::{QuotaMode, Store, open_dir};
use crate::error::{During, Result, shown};

const LEVEL: u32 = 48;
/// As a limit it takes the limit away.
const NONE: u64 = u64::MAX;

impl Store {
    /// The group whose limit holds for a volume, by the path that is its name.
    pub(super) fn room(&self, volume: &Path) -> Result<u64> {
        match self.quota {
            QuotaMode::Simple => Ok(group(volume)),
            QuotaMode::Full => self.id(volume),
        }
    }

    /// Counts a subvolume, which may be the volume itself, as part of a volume.
    pub fn count_with(&self, subvolume: &Path, volume: &Path) -> Result<()> {
        if self.quota == QuotaMode::Full {
            return Ok(());
        }
        let root = open_dir(self.dir())?;
        let (group, member) = (group(volume), self.id(subvolume)?);
        let joined = known(qgroup_create(root.as_fd(), group))
            .and_then(|()| known(qgroup_assign(root.as_fd(), member, group).map(drop)));
        joined.during(format_args!("count {} with its volume", shown(subvolume)))?;
        // Of a volume from before there were groups.
        let limit = self.sysfs.join(format!("0_{member}")).join("max_referenced");
        if std::fs::read_to_string(limit).is_ok_and(|l| l.trim() != "0") {
            qgroup_limit(root.as_fd(), member, QgroupLimitFlags::MAX_RFER, NONE, NONE)
                .during(format_args!("move the limit of {}", shown(subvolume)))?;
        }
        Ok(())
    }

    /// Lets go of the group of a volume that is gone. What cannot go now goes with the next one of
    /// the same name.
    pub fn forget_room(&self, volume: &Path) -> Result<()> {
        if self.quota == QuotaMode::Full || !self.sysfs.join(file_name(group(volume))).exists() {
            return Ok(());
        }
        let root = open_dir(self.dir())?;
        if let Err(error) = drop_group(&root, group(volume)) {
            tracing::debug!(volume = %shown(volume), %error, "its quota group stays for now");
        }
        Ok(())
    }
}

fn drop_group(root: &File, group: u64) -> nix::Result<()> {
    let all = qgroup_list(root.as_fd())?.qgroups;
    // The kernel still cleans some of them up.
    let members = all.iter().filter(|g| g.parents.contains(&group));
    for member in members {
        match qgroup_remove(root.as_fd(), member.qgroupid, group) {
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    match qgroup_destroy(root.as_fd(), group) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The number of a volume's group is derived from its name, which outlives each of its subvolumes.
fn group(volume: &Path) -> u64 {
    let name = volume.file_name().unwrap_or_default();
    let hash = blake3::hash(name.as_encoded_bytes());
    let mut number = [0; 8];
    number[2..].copy_from_slice(&hash.as_bytes()[..6]);
    (1 << LEVEL) | u64::from_be_bytes(number)
}

/// A group's folder in sysfs.
pub(super) fn file_name(group: u64) -> String {
    format!("{}_{}", group >> LEVEL, group & ((1 << LEVEL) - 1))
}

fn known(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_of_level_one_and_named_as_the_kernel_does() {
        let (a, b) = (group(Path::new("/p/volumes/1.a.b")), group(Path::new("/p/volumes/1.a.c")));
        assert_ne!(a, b);
        assert_eq!((a >> LEVEL, b >> LEVEL), (1, 1));
        assert_eq!(file_name((1 << LEVEL) | 7), "1_7");
        assert_eq!(file_name(259), "0_259");
    }
}
