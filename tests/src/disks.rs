//! Disks made of files, and what is mounted from them. Dropping one takes it away.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Enough for a btrfs.
const BYTES: u64 = 128 << 20;

/// Runs a tool that has to succeed; what it printed.
#[track_caller]
pub fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A loop device over a sparse file.
pub struct Disk {
    device: String,
}

impl Disk {
    pub fn new(dir: &Path, name: &str) -> Self {
        let file = dir.join(name);
        std::fs::File::create(&file).unwrap().set_len(BYTES).unwrap();
        Self { device: tool("losetup", &["--find", "--show", &file.to_string_lossy()]) }
    }

    pub fn device(&self) -> &str {
        &self.device
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// A file system that is mounted.
pub struct Mounted {
    pub path: PathBuf,
}

impl Mounted {
    /// Mounts a disk at a folder, which is made.
    pub fn new(disk: &Disk, path: PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        tool("mount", &["-o", options, disk.device(), &path.to_string_lossy()]);
        Self { path }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}
