//! A folder as an initramfs: a cpio archive (newc) that the kernel unpacks into memory at its start.
//!
//! In it, everything belongs to root and is from 1970: the archive depends on names, modes, links and
//! content, not on who built it, where and when.

use std::collections::HashMap;
use std::fs::{DirEntry, Metadata};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cpio::newc;
use nix::sys::stat::{major, minor};

use crate::{EfiError, MAX_BYTES};

/// PATH_MAX: the kernel leaves out longer names without a word.
const MAX_NAME: usize = 4095;
/// The name of the archive's end: what comes behind it is not read.
const END: &str = "TRAILER!!!";
/// More than any sensible system, less than what fills our memory.
const MAX_ENTRIES: usize = 1_000_000;

/// Writes the folder `root` as an initramfs; its `/init` is what the kernel starts.
pub fn initramfs(root: &Path, mut out: impl Write) -> Result<(), EfiError> {
    check_init(root)?;
    let mut entries = Vec::new();
    let device = root.metadata().map_err(EfiError::reading(root))?.dev();
    walk(root, "", device, &mut entries)?;
    let mut links = HashMap::<(u64, u64), u32>::new();
    for entry in &entries {
        *links.entry(entry.identity()).or_default() += 1;
    }
    let mut numbers = HashMap::new();
    let mut total = 0;
    for entry in &entries {
        let next = u32::try_from(numbers.len() + 1).expect("there are at most a million entries");
        let number = *numbers.entry(entry.identity()).or_insert(next);
        // The kernel makes a hard link of every further name of a number; the first has the content.
        let content = if number == next { entry.content()? } else { Vec::new() };
        total += content.len() as u64;
        if total > MAX_BYTES {
            let what = format!("the folder {}", root.display());
            return Err(EfiError::TooLarge { what, bytes: total, limit: MAX_BYTES });
        }
        let header = newc::Builder::new(&entry.name)
            .ino(number)
            .nlink(links[&entry.identity()])
            .mode(entry.meta.mode())
            .rdev_major(device_number(major(entry.meta.rdev())))
            .rdev_minor(device_number(minor(entry.meta.rdev())));
        let length = u32::try_from(content.len()).expect("MAX_BYTES is less than 4 GiB");
        let mut writer = header.write(&mut out, length);
        writer.write_all(&content).map_err(EfiError::writing("the initramfs"))?;
        writer.finish().map_err(EfiError::writing("the initramfs"))?;
    }
    newc::trailer(&mut out).map_err(EfiError::writing("the initramfs"))?;
    out.flush().map_err(EfiError::writing("the initramfs"))
}

/// Without it the kernel looks for a root disk, and stops when there is none.
fn check_init(root: &Path) -> Result<(), EfiError> {
    let init = root.join("init");
    let meta = init.symlink_metadata().map_err(|source| EfiError::Unreadable {
        path: init.clone(),
        hint: ": it is the program that the kernel starts first".into(),
        source,
    })?;
    if meta.is_symlink() || meta.is_file() && meta.mode() & 0o111 != 0 {
        return Ok(());
    }
    Err(EfiError::unusable(init.display().to_string(), "it is no program: make it executable"))
}

struct Entry {
    path: PathBuf,
    /// Below the root, without a slash at its beginning.
    name: String,
    meta: Metadata,
}

impl Entry {
    fn identity(&self) -> (u64, u64) {
        (self.meta.dev(), self.meta.ino())
    }

    fn content(&self) -> Result<Vec<u8>, EfiError> {
        let reading = || EfiError::reading(&self.path);
        if self.meta.is_symlink() {
            let target = self.path.read_link().map_err(reading())?;
            return Ok(target.into_os_string().into_vec());
        }
        if !self.meta.is_file() {
            return Ok(Vec::new());
        }
        if self.meta.len() > MAX_BYTES {
            let what = self.path.display().to_string();
            return Err(EfiError::TooLarge { what, bytes: self.meta.len(), limit: MAX_BYTES });
        }
        let content = std::fs::read(&self.path).map_err(reading())?;
        if content.len() as u64 != self.meta.len() {
            return Err(EfiError::unusable(
                self.path.display().to_string(),
                "it changes while it is read",
            ));
        }
        Ok(content)
    }
}

/// All entries below a folder by name, each folder before what is in it.
fn walk(
    folder: &Path,
    prefix: &str,
    device: u64,
    entries: &mut Vec<Entry>,
) -> Result<(), EfiError> {
    let reading = || EfiError::reading(folder);
    let mut found: Vec<DirEntry> =
        folder.read_dir().and_then(Iterator::collect).map_err(reading())?;
    found.sort_by_key(DirEntry::file_name);
    for entry in found {
        let path = entry.path();
        let meta = path.symlink_metadata().map_err(EfiError::reading(&path))?;
        let name = format!("{prefix}{}", file_name(&entry)?);
        if name.len() > MAX_NAME || name == END || entries.len() >= MAX_ENTRIES {
            return Err(EfiError::unusable(
                path.display().to_string(),
                "a cpio archive cannot hold a name like this, or as many",
            ));
        }
        if meta.dev() != device {
            return Err(EfiError::unusable(
                path.display().to_string(),
                "another file system is mounted there: unmount it",
            ));
        }
        let below = meta.is_dir().then(|| format!("{name}/"));
        entries.push(Entry { path: path.clone(), name, meta });
        if let Some(below) = below {
            walk(&path, &below, device, entries)?;
        }
    }
    Ok(())
}

fn file_name(entry: &DirEntry) -> Result<String, EfiError> {
    entry.file_name().into_string().map_err(|_| {
        EfiError::unusable(entry.path().display().to_string(), "its name is not UTF-8")
    })
}

fn device_number(half: u64) -> u32 {
    u32::try_from(half).expect("both halves of a device number have at most 32 bits")
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    fn root() -> TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("init"), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(root.path().join("init"), Permissions::from_mode(0o755)).unwrap();
        root
    }

    fn archive(root: &Path) -> Result<Vec<u8>, EfiError> {
        let mut out = Vec::new();
        initramfs(root, &mut out).map(|()| out)
    }

    /// Name, mode, number, links and content of each entry.
    fn list(mut archive: &[u8]) -> Vec<(String, u32, u32, u32, String)> {
        let mut all = Vec::new();
        loop {
            let mut reader = newc::Reader::new(archive).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                return all;
            }
            assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 0));
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            all.push((entry.name().into(), entry.mode(), entry.ino(), entry.nlink(), text));
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn names_modes_links_and_content_are_kept_in_order() {
        let root = root();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir_all(at("z/deep")).unwrap();
        std::fs::set_permissions(at("z/deep"), Permissions::from_mode(0o1777)).unwrap();
        std::fs::write(at("z/deep/file"), "content").unwrap();
        std::fs::hard_link(at("z/deep/file"), at("a")).unwrap();
        symlink("/init", at("link")).unwrap();
        let first = archive(root.path()).unwrap();
        let listed: Vec<_> = list(&first);
        let listed: Vec<_> = listed
            .iter()
            .map(|(n, m, i, l, c)| (n.as_str(), *m & !0o22, *i, *l, c.as_str()))
            .collect();
        assert_eq!(
            listed,
            [
                ("a", 0o100644, 1, 2, "content"),
                ("init", 0o100755, 2, 1, "#!/bin/sh\n"),
                ("link", 0o120755, 3, 1, "/init"),
                ("z", 0o40755, 4, 1, ""),
                ("z/deep", 0o41755, 5, 1, ""),
                ("z/deep/file", 0o100644, 1, 2, ""),
            ]
        );
        std::fs::File::open(at("a")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(archive(root.path()).unwrap(), first, "times do not count");
    }

    #[test]
    fn a_folder_without_a_program_to_start_is_refused() {
        let root = root();
        std::fs::set_permissions(root.path().join("init"), Permissions::from_mode(0o644)).unwrap();
        let refused = archive(root.path()).unwrap_err().to_string();
        assert!(refused.contains("make it executable"), "{refused}");
        std::fs::remove_file(root.path().join("init")).unwrap();
        let refused = archive(root.path()).unwrap_err().to_string();
        assert!(refused.contains("init: it is the program"), "{refused}");
    }

    #[test]
    fn what_an_archive_cannot_hold_is_refused() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        for name in [OsStr::new(END), OsStr::from_bytes(b"\xff")] {
            let root = root();
            std::fs::write(root.path().join(name), "").unwrap();
            assert!(matches!(archive(root.path()), Err(EfiError::Unusable { .. })), "{name:?}");
        }
        let root = root();
        let huge = std::fs::File::create(root.path().join("huge")).unwrap();
        huge.set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(archive(root.path()), Err(EfiError::TooLarge { .. })));
    }
}
