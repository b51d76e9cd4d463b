//! Debian's kernel with busybox and an init of ours, as a cloud image would behave.

use std::fs::{self, Permissions};
use std::io::{self, BufWriter};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What it is booted with.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=1";
const INIT: &str = include_str!("init.sh");
/// Each after what it needs; file systems of disks are in the kernel.
const MODULES: [&str; 15] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "nls_cp437",
    "nls_ascii",
    "fat",
    "vfat",
    "evdev",
    "button",
];

/// What a hypervisor boots.
#[derive(Debug, Clone)]
pub struct Linux {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// The guest's files, its initramfs in this folder; none, and the reason on stderr, when what
/// `make setup` brings is not there.
pub fn linux(folder: &Path) -> Option<Linux> {
    let busybox = need(PathBuf::from("/bin/busybox"), "busybox-static")?;
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../build/kernel/vmlinuz");
    let kernel =
        std::env::var_os("RHIZOME_TEST_KERNEL").map_or_else(|| beside.into(), PathBuf::from);
    let kernel = need(kernel, "scripts/fetch-kernel.sh")?.canonicalize().ok()?;
    let modules = kernel.with_file_name("modules");
    for name in MODULES {
        need(modules.join(format!("{name}.ko")), "scripts/fetch-kernel.sh")?;
    }
    let initramfs = folder.join("guest.cpio");
    write(&busybox, &modules, &initramfs)
        .unwrap_or_else(|e| panic!("cannot write {}: {e}", initramfs.display()));
    Some(Linux { kernel, initramfs })
}

/// The path, or why the test is skipped.
#[allow(clippy::print_stderr, reason = "it is for the readers of a test's output")]
fn need(path: PathBuf, from: &str) -> Option<PathBuf> {
    let found = path.exists();
    if !found {
        eprintln!("SKIPPED: {} is missing; `make setup` brings it ({from})", path.display());
    }
    found.then_some(path)
}

fn write(busybox: &Path, modules: &Path, initramfs: &Path) -> io::Result<()> {
    let root = tempfile::tempdir()?;
    let at = |name: &str| root.path().join(name);
    for name in ["bin", "dev", "etc", "lib", "mnt", "proc", "run", "sys", "tmp", "www"] {
        fs::create_dir(at(name))?;
    }
    fs::copy(busybox, at("bin/busybox"))?;
    symlink("busybox", at("bin/sh"))?;
    for (n, name) in MODULES.iter().enumerate() {
        let module = format!("{name}.ko");
        // Loaded in the order of their names.
        fs::copy(modules.join(&module), at("lib").join(format!("{n:02}-{module}")))?;
    }
    fs::write(at("init"), INIT)?;
    fs::set_permissions(at("init"), Permissions::from_mode(0o755))?;
    let out = BufWriter::new(fs::File::create(initramfs)?);
    rhizome_efi::initramfs(root.path(), out).map_err(io::Error::other)
}
