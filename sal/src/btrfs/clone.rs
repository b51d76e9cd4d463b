//! Files without copy-on-write, and clones of them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::libc;

use crate::error::{During, Result, shown};

/// From linux/fs.h; it is not in libc.
const NO_COW: libc::c_int = 0x0080_0000;

nix::ioctl_read_bad!(get_flags, libc::FS_IOC_GETFLAGS, libc::c_int);
nix::ioctl_write_ptr_bad!(set_flags, libc::FS_IOC_SETFLAGS, libc::c_int);
nix::ioctl_write_int_bad!(clone_all, libc::FICLONE);

/// Has a folder's new files, or a file that is empty, be written in place: what a machine writes
/// again and again would end up in pieces, and every piece count twice.
pub(crate) fn without_cow(path: &Path) -> Result<()> {
    let what = || format!("turn off copy-on-write of {}", shown(path));
    let file = File::open(path).during(what())?;
    let mut flags = 0;
    // SAFETY: the descriptor is open, and the flags are a live integer.
    unsafe { get_flags(file.as_raw_fd(), &raw mut flags) }.during(what())?;
    flags |= NO_COW;
    // SAFETY: as above.
    unsafe { set_flags(file.as_raw_fd(), &raw const flags) }.during(what())?;
    Ok(())
}

/// Makes a file that shares all that is in another one until either is written. Both are, or are
/// not, without copy-on-write.
pub(crate) fn clone_file(source: &Path, path: &Path) -> Result<File> {
    let what = || format!("clone {} to {}", shown(source), shown(path));
    let from = File::open(source).during(what())?;
    let to = File::create(path).during(what())?;
    // SAFETY: both descriptors are open.
    unsafe { clone_all(to.as_raw_fd(), from.as_raw_fd()) }.during(what())?;
    Ok(to)
}
