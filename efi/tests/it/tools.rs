//! Programs that others wrote, and what an image is built from.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rhizome_efi::{STUB, Uki, initramfs, read_stub};
use tempfile::TempDir;

pub const OSREL: &str = "ID=rhizome\nPRETTY_NAME=\"Rhizome\"\n";

/// The path, or why the test is skipped.
pub fn need(path: impl Into<PathBuf>, package: &str) -> Option<PathBuf> {
    let path = path.into();
    let found = path.exists();
    if !found {
        eprintln!("SKIPPED: {} is missing; `make setup` brings it ({package})", path.display());
    }
    found.then_some(path)
}

/// A program in one of the usual places.
pub fn program(name: &str, package: &str) -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    let found = folders.iter().map(|f| Path::new(f).join(name)).find(|p| p.exists());
    found.or_else(|| need(name, package))
}

/// Debian's kernel, as `make setup` puts it beside the workspace.
pub fn kernel() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../build/kernel/vmlinuz");
    let path = std::env::var_os("RHIZOME_TEST_KERNEL").map_or_else(|| beside.into(), PathBuf::from);
    need(path, "scripts/fetch-kernel.sh")
}

pub fn stub() -> Option<Vec<u8>> {
    need(STUB, "systemd-boot-efi").map(|path| read_stub(&path).unwrap())
}

/// Runs it, and gives what it printed; it must succeed.
pub fn run(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("LC_ALL", "C").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {args:?}: {text}{errors}", program.display());
    text
}

/// A root folder whose init is this script, run by busybox.
pub fn root(busybox: &Path, script: &str) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for folder in ["bin", "dev", "proc"] {
        std::fs::create_dir(root.path().join(folder)).unwrap();
    }
    std::fs::copy(busybox, root.path().join("bin/busybox")).unwrap();
    let init = root.path().join("init");
    std::fs::write(&init, format!("#!/bin/busybox sh\n{script}")).unwrap();
    std::fs::set_permissions(&init, Permissions::from_mode(0o755)).unwrap();
    root
}

pub fn uki(kernel: &[u8], cmdline: &str, root: &Path) -> Option<Vec<u8>> {
    let stub = stub()?;
    let mut initrd = Vec::new();
    initramfs(root, &mut initrd).unwrap();
    let uki = Uki { stub: &stub, osrel: OSREL, cmdline, kernel, initrd: &initrd };
    Some(uki.assemble().unwrap())
}
