//! The pool: a btrfs, mounted, with quotas on.
//!
//! Each step is taken only when its result is not there yet, and a file system appears under its
//! name only when it is complete, so this can be killed anywhere and done again.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use btrfs_uapi::quota::{quota_enable, quota_rescan_wait};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use rhizome_model::{Bytes, Code, WorkloadKind};

use crate::btrfs::Store;
use crate::error::{During, Result, SalError, shown};
use crate::files;
use crate::lock::Lock;
use crate::node::{NodeConfig, Pool, folder_of};
use crate::tool::Tool;

/// Below this a btrfs has no room for its own trees.
const MIN_POOL: Bytes = Bytes::mib(256);
/// How long a file system that somebody still looks at keeps us from unmounting it.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn up(config: &NodeConfig) -> Result<Store> {
    let dir = config.pool_dir();
    match &config.pool {
        Pool::LoopFile { size } => {
            let image = config.state.join("pool.img");
            if !is_mounted(&dir)? {
                make_image(&image, *size)?;
                mount(&image, &dir, "loop,noatime")?;
            }
        }
        Pool::Device(device) => {
            if !is_mounted(&dir)? {
                mount(device, &dir, "noatime")?;
            }
        }
        Pool::Mounted(path) if !path.is_dir() => {
            return Err(SalError::new(
                Code::Unavailable,
                format!("the pool {} is not there: mount it first", shown(path)),
            ));
        }
        Pool::Mounted(_) => {}
    }
    let store = match Store::open(&dir)? {
        Some(store) => store,
        None => with_quotas(&dir)?,
    };
    let kinds = WorkloadKind::ALL.iter().map(|kind| folder_of(*kind));
    for folder in kinds.chain(["snapshots".into(), "images".into()]) {
        let folder = dir.join(folder);
        files::make_folder(&folder)?;
        // Machines bring programs that are setuid root; nobody else on the node shall reach them.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
            .during(format_args!("close {} to others", shown(&folder)))?;
    }
    Ok(store)
}

/// Mounts the pool of a node that is up again, if somebody took it away; says whether it did.
pub(crate) fn mend(config: &NodeConfig) -> Result<bool> {
    let dir = config.pool_dir();
    if matches!(config.pool, Pool::Mounted(_)) || is_mounted(&dir)? {
        return Ok(false);
    }
    let _lock = Lock::take(&config.locks().join("node"))?;
    if is_mounted(&dir)? {
        return Ok(false);
    }
    up(config).map(|_| true)
}

/// The pool of a node that is up.
pub(crate) fn open(config: &NodeConfig) -> Result<Store> {
    let dir = config.pool_dir();
    let mounted = matches!(config.pool, Pool::Mounted(_)) || is_mounted(&dir)?;
    let store = if mounted { Store::open(&dir)? } else { None };
    store.ok_or_else(|| {
        SalError::new(
            Code::Unavailable,
            format!("the node is not up (no pool on {}): start 'rhizome node' first", shown(&dir)),
        )
    })
}

/// Unmounts what [`up`] mounts; the loop device goes with it.
pub(crate) fn down(config: &NodeConfig) -> Result<()> {
    let dir = config.pool_dir();
    if matches!(config.pool, Pool::Mounted(_)) {
        return Ok(());
    }
    let deadline = Instant::now() + UNMOUNT_PATIENCE;
    while is_mounted(&dir)? {
        match umount2(&dir, MntFlags::empty()) {
            Err(Errno::EBUSY) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => other.during(format_args!("unmount {}", shown(&dir)))?,
        }
    }
    // The loop device lets go by itself, but not before the last who has it open.
    while has_loop(&config.state.join("pool.img")) {
        if Instant::now() > deadline {
            return Err(SalError::new(
                Code::TimedOut,
                format!(
                    "the loop device of {} is held open by somebody: see 'losetup -a'",
                    shown(&config.state.join("pool.img"))
                ),
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Whether a file is behind a loop device.
fn has_loop(image: &Path) -> bool {
    let Ok(image) = image.canonicalize() else { return false };
    let blocks = files::names(Path::new("/sys/block")).unwrap_or_default();
    blocks.iter().filter(|name| name.starts_with("loop")).any(|name| {
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        fs::read_to_string(backing).is_ok_and(|file| Path::new(file.trim_end()) == image)
    })
}

pub(crate) fn is_mounted(dir: &Path) -> Result<bool> {
    let Ok(dir) = dir.canonicalize() else { return Ok(false) };
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").during("read the mounts")?;
    let wanted = escaped(&dir.to_string_lossy());
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(&wanted)))
}

/// As mountinfo writes a path.
fn escaped(path: &str) -> String {
    path.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

fn make_image(image: &Path, size: Bytes) -> Result<()> {
    if image.exists() {
        return Ok(());
    }
    if size < MIN_POOL {
        return Err(SalError::new(
            Code::BadRequest,
            format!("a pool of {size} is too small: give it at least {MIN_POOL}"),
        ));
    }
    let new = files::with_suffix(image, ".new");
    File::create(&new)
        .and_then(|f| f.set_len(size.0))
        .during(format_args!("make the pool's file {}", shown(&new)))?;
    Tool::new("mkfs.btrfs").args(["--quiet", "--force", "--label", "rhizome"]).arg(&new).run()?;
    fs::rename(&new, image).during(format_args!("name the pool's file {}", shown(image)))
}

fn mount(source: &Path, dir: &Path, options: &str) -> Result<()> {
    files::make_folder(dir)?;
    Tool::new("mount").args(["-t", "btrfs", "-o", options]).arg(source).arg(dir).run().map(drop)
}

/// Simple quotas, or quota groups on a kernel before 6.7.
fn with_quotas(dir: &Path) -> Result<Store> {
    let root = File::open(dir).during(format_args!("open {}", shown(dir)))?;
    if quota_enable(root.as_fd(), true).is_err() {
        quota_enable(root.as_fd(), false)
            .and_then(|()| quota_rescan_wait(root.as_fd()))
            .during(format_args!("turn on the quotas of {}", shown(dir)))?;
    }
    Store::open(dir)?.ok_or_else(|| {
        SalError::new(
            Code::Internal,
            format!("the quotas of {} are on, but sysfs shows none", shown(dir)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_the_kernel_does() {
        assert_eq!(escaped("/a b\\c"), "/a\\040b\\134c");
    }
}
