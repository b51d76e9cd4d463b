//! The volumes that are mounted in a running container, seen and mounted from outside.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rhizome_model::Code;

use super::Bind;
use crate::error::{During, Result, SalError, shown};

/// The paths on which nothing of a volume is mounted in a process's namespace.
pub(crate) fn missing(pid: i32, mounts: &[Bind]) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    // A process that is just ending has none at all.
    if text.is_empty() { Vec::new() } else { unmounted(&text, mounts) }
}

/// A path may lead through links of the image, so mounts are known by what is mounted, and counted.
fn unmounted(mountinfo: &str, mounts: &[Bind]) -> Vec<String> {
    let mut roots: Vec<_> = mountinfo.lines().filter_map(|l| l.split(' ').nth(3)).collect();
    let absent = mounts.iter().filter(|Bind { source, .. }| {
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        let end = format!("/volumes/{name}");
        match roots.iter().position(|root| root.ends_with(&end)) {
            Some(found) => {
                roots.swap_remove(found);
                false
            }
            None => true,
        }
    });
    absent.map(|bind| bind.path.clone()).collect()
}

/// Mounts what is missing into the namespace of a process that runs.
pub(crate) fn restore(pid: i32, mounts: &[Bind]) -> Result<()> {
    let missing = missing(pid, mounts);
    for bind in mounts.iter().filter(|bind| missing.contains(&bind.path)) {
        let tree = detached(&bind.source, bind.readonly)?;
        enter_and_attach(pid, &tree, &bind.path)?;
    }
    Ok(())
}

/// A mount of a folder that is nowhere yet, with the flags that the bundle has for it.
fn detached(source: &Path, readonly: bool) -> Result<OwnedFd> {
    let what = || format!("take a mount of {}", shown(source));
    let path = CString::new(source.as_os_str().as_encoded_bytes())
        .map_err(std::io::Error::from)
        .during(what())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a live C string.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = Errno::result(fd).during(what())?;
    // SAFETY: the call has just given us this descriptor, and nobody else has it.
    let tree = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let set = libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: all pointers are to live values, and the size is that of the structure.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(done).during(what())?;
    Ok(tree)
}

/// The path is looked up from the machine's own root, so none of its links leads out.
fn enter_and_attach(pid: i32, tree: &OwnedFd, path: &str) -> Result<()> {
    let what = || format!("mount on {path} of a machine");
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).during(what())?;
    let target = CString::new(path).map_err(std::io::Error::from).during(what())?;
    // A thread of its own: it leaves our namespace and never comes back.
    let attached = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(&namespace, CloneFlags::CLONE_NEWNS)?;
            match attach(tree, &target) {
                // A volume that was deleted is still mounted there, and nothing can be on top of it.
                Err(Errno::ENOENT) => {
                    umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
                    attach(tree, &target)
                }
                done => done,
            }
        });
        thread.join()
    });
    match attached {
        Ok(done) => done.during(what()),
        Err(_) => Err(SalError::new(Code::Internal, format!("{} broke off", what()))),
    }
}

fn attach(tree: &OwnedFd, target: &CString) -> nix::Result<()> {
    // SAFETY: both paths are live C strings, and the descriptor is open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_what_is_mounted() {
        let mount = |path: &str| Bind {
            source: "/p/volumes/1.app.data".into(),
            path: path.to_owned(),
            readonly: false,
        };
        let there = "40 30 0:33 /volumes/1.app.data /data rw - btrfs /dev/loop0 rw";
        let deleted = "40 30 0:33 /volumes/1.app.data//deleted /data rw - btrfs /dev/loop0 rw";
        assert!(unmounted(there, &[mount("/data")]).is_empty());
        assert_eq!(unmounted(deleted, &[mount("/data")]), ["/data"]);
        assert_eq!(unmounted(there, &[mount("/data"), mount("/more")]), ["/more"]);
        let longer = there.replace("1.app.data", "1.app.data2");
        assert_eq!(unmounted(&longer, &[mount("/data")]), ["/data"]);
    }
}
