//! A folder as an image: what it looks like from outside, its copy, and the digest of that.

use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use super::{link_escapes, unsafe_image};
use crate::error::{During, Result, shown};

/// What changes when a file in the folder does, without reading the files.
pub(super) fn stamp(root: &Path) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    walk(root, &mut |relative, meta| {
        hash.update(relative.as_os_str().as_bytes());
        hash.update(format!("\0{} {}\n", meta.mode(), super::stamp(meta)).as_bytes());
        Ok(())
    })?;
    Ok(hash.finalize().to_hex().to_string())
}

/// The digest of a folder's content: names, kinds, modes, owners, bytes and links.
pub(super) fn digest(root: &Path) -> Result<String> {
    let mut hash = blake3::Hasher::new_derive_key("rhizome 2026 image folder v1");
    walk(root, &mut |relative, meta| {
        let path = root.join(relative);
        let mut head = String::new();
        // Writing to a string cannot fail.
        let _ = write!(head, "\0{} {} {} ", meta.mode(), meta.uid(), meta.gid());
        hash.update(relative.as_os_str().as_bytes());
        hash.update(head.as_bytes());
        if meta.is_symlink() {
            hash.update(read_link(&path)?.as_os_str().as_bytes());
        } else if meta.is_file() {
            hash.update(format!("{}\0", meta.len()).as_bytes());
            let file = File::open(&path).during(format_args!("open {}", shown(&path)))?;
            hash.update_reader(file).during(format_args!("read {}", shown(&path)))?;
        }
        hash.update(b"\n");
        Ok(())
    })?;
    Ok(hash.finalize().to_hex().to_string())
}

/// Copies files, folders and links with their modes and owners; sockets, pipes and devices are
/// left out.
pub(super) fn copy(image: &str, root: &Path, to: &Path) -> Result<()> {
    walk(root, &mut |relative, meta| {
        let (from, target) = (root.join(relative), to.join(relative));
        if meta.is_dir() {
            if !relative.as_os_str().is_empty() {
                fs::create_dir(&target).during(format_args!("make {}", shown(&target)))?;
            }
        } else if meta.is_symlink() {
            let link = read_link(&from)?;
            if link_escapes(relative.parent().unwrap_or(Path::new("")), &link) {
                return Err(unsafe_image(image, relative, "is a link that leaves the root"));
            }
            symlink(link, &target).during(format_args!("make {}", shown(&target)))?;
        } else if meta.is_file() {
            fs::copy(&from, &target).during(format_args!("copy {}", shown(&from)))?;
        } else {
            return Ok(());
        }
        lchown(&target, Some(meta.uid()), Some(meta.gid()))
            .during(format_args!("give {} its owner", shown(&target)))?;
        if !meta.is_symlink() {
            fs::set_permissions(&target, fs::Permissions::from_mode(meta.mode() & 0o7777))
                .during(format_args!("give {} its mode", shown(&target)))?;
        }
        Ok(())
    })
}

fn read_link(path: &Path) -> Result<PathBuf> {
    fs::read_link(path).during(format_args!("read the link {}", shown(path)))
}

/// Visits a folder and everything in it, in the order of names, links not followed.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path, &Metadata) -> Result<()>) -> Result<()> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let path = root.join(&relative);
        let meta = fs::symlink_metadata(&path).during(format_args!("look at {}", shown(&path)))?;
        visit(&relative, &meta)?;
        if meta.is_dir() {
            let mut inside = Vec::new();
            for entry in fs::read_dir(&path).during(format_args!("read {}", shown(&path)))? {
                let entry = entry.during(format_args!("read {}", shown(&path)))?;
                inside.push(relative.join(entry.file_name()));
            }
            inside.sort_by(|a, b| b.cmp(a));
            waiting.append(&mut inside);
        }
    }
    Ok(())
}
