//! btrfs: subvolumes by libbtrfsutil, quotas and nested subvolumes by ioctl, usage by sysfs.
//!
//! Of the `btrfsutil` crate only create, snapshot, delete, the read-only flag and the check for a
//! subvolume are used, always with absolute paths and without qgroups to inherit: its iterators and
//! its qgroup structures are unsound.

mod clone;
mod room;

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use btrfs_uapi::filesystem::{filesystem_info, sync};
use btrfs_uapi::inode::lookup_path_rootid;
use btrfs_uapi::quota::{QgroupLimitFlags, qgroup_clear_stale, qgroup_destroy, qgroup_limit};
use btrfs_uapi::subvolume::{subvolume_delete_by_id, subvolume_list};
use btrfsutil::subvolume::Subvolume;
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use rhizome_model::Bytes;

pub(crate) use self::clone::{clone_file, without_cow};
use crate::error::{During, Result, shown};

/// Whose bytes count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// All that a volume refers to, with what its snapshots keep.
    Referenced,
    /// What it has for itself: a snapshot begins with nothing.
    Own,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuotaMode {
    /// Simple quotas: who writes first pays, snapshots are free.
    Simple,
    /// Quota groups with back references.
    Full,
}

impl QuotaMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Simple => "simple quotas",
            Self::Full => "quota groups",
        }
    }
}

/// A folder on a mounted btrfs with quotas on.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    sysfs: PathBuf,
    pub quota: QuotaMode,
}

impl Store {
    /// Opens a pool. `None` when quotas are off.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let root = open_dir(dir)?;
        let info = filesystem_info(root.as_fd())
            .during(format_args!("ask {} for its btrfs file system", shown(dir)))?;
        let sysfs = Path::new("/sys/fs/btrfs").join(info.uuid.to_string()).join("qgroups");
        let Ok(mode) = fs::read_to_string(sysfs.join("mode")).or_else(|e| {
            // Before Linux 6.7 there is one mode and no file that names it.
            if sysfs.exists() { Ok("qgroup".into()) } else { Err(e) }
        }) else {
            return Ok(None);
        };
        let quota = if mode.trim() == "squota" { QuotaMode::Simple } else { QuotaMode::Full };
        Ok(Some(Self { dir: dir.to_owned(), sysfs, quota }))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn total(&self) -> Result<Bytes> {
        let stat = statvfs(&self.dir).during(format_args!("measure {}", shown(&self.dir)))?;
        Ok(Bytes(stat.blocks() * stat.fragment_size()))
    }

    pub fn create(&self, path: &Path) -> Result<()> {
        util(Subvolume::create(path, None).map(drop), "make the subvolume", path)
    }

    /// A writable snapshot.
    pub fn snapshot(&self, source: &Path, path: &Path) -> Result<()> {
        let made = Subvolume::get(source).and_then(|s| s.snapshot(path, None, None));
        util(made.map(drop), "make the snapshot", path)
    }

    /// Puts two subvolumes of one folder each in the place of the other, in one step.
    pub fn exchange(&self, one: &Path, other: &Path) -> Result<()> {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
            .during(format_args!("put {} in the place of {}", shown(one), shown(other)))
    }

    pub fn set_readonly(&self, path: &Path) -> Result<()> {
        let set = Subvolume::get(path).and_then(|s| s.set_ro(true));
        util(set, "make read-only", path)
    }

    /// Whether there is a subvolume at the path.
    pub fn has(&self, path: &Path) -> bool {
        path.is_dir() && Subvolume::is_subvolume(path).is_ok()
    }

    /// Deletes a subvolume with all that is nested in it, bottom-up, and its quota group. What is
    /// not there is fine.
    pub fn delete(&self, path: &Path) -> Result<()> {
        if !path.exists() {
            return Ok(());
        }
        let root = open_dir(&self.dir)?;
        let id = self.id(path)?;
        let plain = Subvolume::get(path).and_then(|s| s.delete(None));
        if plain.is_err() {
            for nested in self.nested(&root, id)? {
                subvolume_delete_by_id(root.as_fd(), nested)
                    .during(format_args!("delete a subvolume nested in {}", shown(path)))?;
            }
            let again = Subvolume::get(path).and_then(|s| s.delete(None));
            util(again, "delete the subvolume", path)?;
        }
        self.drop_quota(&root, id);
        Ok(())
    }

    pub fn limit(&self, path: &Path, counted: Counted, limit: Bytes) -> Result<()> {
        let root = open_dir(&self.dir)?;
        let (flags, group) = match counted {
            Counted::Referenced => {
                self.count_with(path, path)?;
                (QgroupLimitFlags::MAX_RFER, self.room(path)?)
            }
            Counted::Own => (QgroupLimitFlags::MAX_EXCL, self.id(path)?),
        };
        qgroup_limit(root.as_fd(), group, flags, limit.0, limit.0)
            .during(format_args!("limit {} to {limit}", shown(path)))
    }

    /// What is used, and the limit where there is one. Writes that are still under way count only
    /// after [`Self::sync`].
    pub fn usage(&self, path: &Path, counted: Counted) -> Result<(Bytes, Option<Bytes>)> {
        let (used, limit, group) = match counted {
            Counted::Referenced => ("referenced", "max_referenced", self.room(path)?),
            Counted::Own => ("exclusive", "max_exclusive", self.id(path)?),
        };
        let group = self.sysfs.join(room::file_name(group));
        if counted == Counted::Referenced && !group.exists() {
            return Ok((Bytes(0), None));
        }
        let read = |name| -> Result<u64> {
            let text = fs::read_to_string(group.join(name))
                .during(format_args!("read the quota of {}", shown(path)))?;
            Ok(text.trim().parse().unwrap_or(0))
        };
        let limit = read(limit)?;
        Ok((Bytes(read(used)?), (limit != 0).then_some(Bytes(limit))))
    }

    /// Brings everything that is written to disk and into account.
    pub fn sync(&self) -> Result<()> {
        let root = open_dir(&self.dir)?;
        sync(root.as_fd()).during(format_args!("sync {}", shown(&self.dir)))
    }

    fn id(&self, path: &Path) -> Result<u64> {
        lookup_path_rootid(open_dir(path)?.as_fd())
            .during(format_args!("ask for the subvolume of {}", shown(path)))
    }

    /// The subvolumes below one, deepest first.
    fn nested(&self, root: &File, id: u64) -> Result<Vec<u64>> {
        let all = subvolume_list(root.as_fd())
            .during(format_args!("list the subvolumes of {}", shown(&self.dir)))?;
        let mut found = vec![id];
        let mut i = 0;
        while i < found.len() {
            let parent = found[i];
            found.extend(all.iter().filter(|s| s.parent_id == parent).map(|s| s.root_id));
            i += 1;
        }
        Ok(found.into_iter().skip(1).rev().collect())
    }

    /// The group of a subvolume that is still being cleaned up cannot go yet: it goes with a later
    /// deletion, or with the kernel's own cleaning.
    fn drop_quota(&self, root: &File, id: u64) {
        match qgroup_destroy(root.as_fd(), id) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(_) => self.drop_stale_quotas(root),
        }
    }

    fn drop_stale_quotas(&self, root: &File) {
        if let Err(error) = qgroup_clear_stale(root.as_fd()) {
            tracing::debug!(%error, "stale quota groups stay for now");
        }
    }
}

fn open_dir(path: &Path) -> Result<File> {
    File::open(path).during(format_args!("open {}", shown(path)))
}

/// The crate drops errno; right after the call it is still there.
fn util<E>(result: std::result::Result<(), E>, what: &str, path: &Path) -> Result<()> {
    result
        .map_err(|_| std::io::Error::last_os_error())
        .during(format_args!("{what} {}", shown(path)))
}

/// Our note on a subvolume, which only root sees.
const NOTE: &std::ffi::CStr = c"trusted.rhizome.made-for";

pub(crate) fn write_note(path: &Path, note: &str) -> Result<()> {
    let name = c_path(path)?;
    // SAFETY: all pointers are to live values, and the length is that of the note.
    let done = unsafe {
        nix::libc::lsetxattr(name.as_ptr(), NOTE.as_ptr(), note.as_ptr().cast(), note.len(), 0)
    };
    Errno::result(done).map(drop).during(format_args!("mark {}", shown(path)))
}

pub(crate) fn read_note(path: &Path) -> Option<String> {
    let name = c_path(path).ok()?;
    let mut buffer = [0u8; 256];
    // SAFETY: all pointers are to live values, and the length is that of the buffer.
    let n = unsafe {
        nix::libc::lgetxattr(name.as_ptr(), NOTE.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    };
    let n = usize::try_from(n).ok()?;
    String::from_utf8(buffer[..n].to_vec()).ok()
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(std::io::Error::from)
        .during(format_args!("use the path {}", shown(path)))
}
