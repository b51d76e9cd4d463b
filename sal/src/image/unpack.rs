//! Unpacks a tar archive that nobody vouches for.
//!
//! Every entry is made relative to a descriptor of its parent folder, which the kernel has resolved
//! beneath the root (`openat2`): whatever links the archive has made before, nothing is ever made
//! outside. What tries is refused, and so is an archive that ends too early.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use rhizome_model::Code;
use tar::{Archive, Entry, EntryType};

use super::{link_escapes, unsafe_image};
use crate::error::{During, Result, SalError};

/// More entries than any image has; an archive of nothing but names ends here.
const MAX_ENTRIES: usize = 2_000_000;
/// An archive ends with two blocks of zeros.
const TRAILER: usize = 1024;

struct Unpacker<'a> {
    image: &'a str,
    root: OwnedFd,
}

pub(super) fn unpack(image: &str, file: &mut File, root: &Path) -> Result<()> {
    check_end(image, file)?;
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .during("open the new image")?;
    let unpacker = Unpacker { image, root };
    let mut archive = Archive::new(file);
    let entries = archive.entries().map_err(|e| unpacker.corrupt(&e))?;
    for (n, entry) in entries.enumerate() {
        if n >= MAX_ENTRIES {
            return Err(unpacker.corrupt(&"it has too many entries"));
        }
        unpacker.entry(&mut entry.map_err(|e| unpacker.corrupt(&e))?)?;
    }
    Ok(())
}

/// Looks at both ends before anything is unpacked.
fn check_end(image: &str, file: &mut File) -> Result<()> {
    let corrupt =
        |why: &str| Err(SalError::new(Code::ImageCorrupt, format!("image {image}: {why}")));
    let mut begin = [0; 2];
    let mut end = [1; TRAILER];
    let mut look = || {
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut begin)?;
        file.seek(SeekFrom::End(-(TRAILER as i64)))?;
        file.read_exact(&mut end)?;
        file.seek(SeekFrom::Start(0))
    };
    let looked = look();
    if begin == [0x1f, 0x8b] {
        return corrupt("it is compressed; give the plain tar archive (gunzip it)");
    }
    match looked {
        Ok(_) if end.iter().all(|b| *b == 0) => Ok(()),
        _ => corrupt("it is not a tar archive, or it ends too early; copy it again"),
    }
}

impl Unpacker<'_> {
    fn corrupt(&self, why: &dyn std::fmt::Display) -> SalError {
        SalError::new(
            Code::ImageCorrupt,
            format!(
                "image {}: it cannot be read as a tar archive: {why}; copy it again",
                self.image
            ),
        )
    }

    fn entry(&self, entry: &mut Entry<'_, &mut File>) -> Result<()> {
        let path = entry.path().map_err(|e| self.corrupt(&e))?.into_owned();
        let relative = self.relative(&path)?;
        let named_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::Char | EntryType::Block | EntryType::Fifo) {
            // The runtime makes the devices that a machine may have.
            return Ok(());
        }
        let is_file = kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse();
        let (parent, leaf) = self.parent(&path, &relative)?;
        let at = |leaf: &Path| {
            Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(leaf)
        };
        let target = match &leaf {
            Some(leaf) => at(leaf),
            None => at(Path::new(".")),
        };
        if kind.is_dir() || (is_file && named_folder) {
            if leaf.is_some() {
                self.make_folder(&target)?;
            }
        } else if leaf.is_none() {
            return Err(unsafe_image(self.image, &path, "replaces the root itself"));
        } else if is_file {
            self.clear(&target)?;
            self.file(entry, &target)?;
        } else if kind.is_symlink() {
            let link = self.link_name(entry)?;
            let folder = relative.parent().unwrap_or(Path::new(""));
            if link_escapes(folder, &link) {
                return Err(unsafe_image(self.image, &path, "is a link that leaves the root"));
            }
            self.clear(&target)?;
            symlink(&link, &target).during(format_args!("unpack {}", path.display()))?;
        } else if kind.is_hard_link() {
            return self.hard_link(entry, &path, &target);
        } else {
            return Ok(());
        }
        self.own(entry, &target, kind.is_symlink())
    }

    /// The entry's path below the root.
    fn relative(&self, path: &Path) -> Result<PathBuf> {
        let mut relative = PathBuf::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => relative.push(name),
                Component::CurDir => {}
                Component::RootDir | Component::Prefix(_) => {
                    return Err(unsafe_image(self.image, path, "is an absolute path"));
                }
                Component::ParentDir => {
                    return Err(unsafe_image(self.image, path, "has '..' in its path"));
                }
            }
        }
        Ok(relative)
    }

    /// Opens the folder that an entry is in, made if need be, and says the entry's own name there.
    fn parent(&self, path: &Path, relative: &Path) -> Result<(OwnedFd, Option<PathBuf>)> {
        let leaf = relative.file_name().map(PathBuf::from);
        let folder = relative.parent().unwrap_or(Path::new(""));
        match self.folder(folder) {
            Err(Errno::ENOENT) => {}
            other => return Ok((self.refused(path, other)?, leaf)),
        }
        let mut so_far = PathBuf::new();
        for part in folder.components() {
            let above = self.refused(path, self.folder(&so_far))?;
            so_far.push(part);
            match nix::sys::stat::mkdirat(&above, part.as_os_str(), Mode::from_bits_truncate(0o755))
            {
                Ok(()) | Err(Errno::EEXIST) => {}
                other => other.during(format_args!("unpack {}", path.display()))?,
            }
        }
        Ok((self.refused(path, self.folder(folder))?, leaf))
    }

    fn folder(&self, folder: &Path) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        openat2(&self.root, folder, how)
    }

    fn refused(&self, path: &Path, opened: nix::Result<OwnedFd>) -> Result<OwnedFd> {
        match opened {
            Err(Errno::EXDEV | Errno::ELOOP) => {
                Err(unsafe_image(self.image, path, "lies behind a link that leaves the root"))
            }
            Err(Errno::ENOTDIR) => {
                Err(self
                    .corrupt(&format!("'{}' lies in something that is no folder", path.display())))
            }
            other => other.during(format_args!("unpack {}", path.display())),
        }
    }

    fn make_folder(&self, target: &Path) -> Result<()> {
        match fs::symlink_metadata(target) {
            Ok(meta) if meta.is_dir() => Ok(()),
            _ => {
                self.clear(target)?;
                fs::create_dir(target).during("unpack a folder")
            }
        }
    }

    /// A later entry replaces an earlier one of the same name.
    fn clear(&self, target: &Path) -> Result<()> {
        let removed = match fs::symlink_metadata(target) {
            Ok(meta) if meta.is_dir() => fs::remove_dir(target),
            Ok(_) => fs::remove_file(target),
            Err(_) => return Ok(()),
        };
        removed.map_err(|e| self.corrupt(&format!("a folder that is not empty is replaced: {e}")))
    }

    fn file(&self, entry: &mut Entry<'_, &mut File>, target: &Path) -> Result<()> {
        let name = entry.path().map(|p| p.display().to_string()).unwrap_or_default();
        let mut file = File::create_new(target).during(format_args!("unpack {name}"))?;
        let mut buffer = vec![0; 64 << 10];
        let mut written = 0;
        loop {
            let n = entry.read(&mut buffer).map_err(|e| self.corrupt(&e))?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n]).during(format_args!("unpack {name}"))?;
            written += n as u64;
        }
        if written != entry.size() {
            return Err(self.corrupt(&format!("'{name}' ends too early")));
        }
        let mtime = entry.header().mtime().unwrap_or(0);
        // A time that the system cannot hold is no reason to refuse the file.
        let _ = file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(mtime.min(1 << 40)));
        Ok(())
    }

    fn hard_link(&self, entry: &Entry<'_, &mut File>, path: &Path, target: &Path) -> Result<()> {
        let to = self.link_name(entry)?;
        let relative = self.relative(&to)?;
        let (folder, leaf) = self.parent(path, &relative)?;
        let leaf = leaf.ok_or_else(|| self.corrupt(&"a hard link to the root"))?;
        let original = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(&leaf);
        if !fs::symlink_metadata(&original).is_ok_and(|m| !m.is_dir()) {
            return Err(self.corrupt(&format!(
                "'{}' links to '{}', which is not there",
                path.display(),
                to.display()
            )));
        }
        self.clear(target)?;
        fs::hard_link(&original, target).during(format_args!("unpack {}", path.display()))
    }

    fn link_name(&self, entry: &Entry<'_, &mut File>) -> Result<PathBuf> {
        let name = entry.link_name().map_err(|e| self.corrupt(&e))?;
        name.map(std::borrow::Cow::into_owned).ok_or_else(|| self.corrupt(&"a link to nothing"))
    }

    /// Owner first: changing it takes setuid away.
    fn own(&self, entry: &Entry<'_, &mut File>, target: &Path, is_link: bool) -> Result<()> {
        let header = entry.header();
        let id = |id: std::io::Result<u64>| {
            id.ok().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| self.corrupt(&"a bad owner"))
        };
        lchown(target, Some(id(header.uid())?), Some(id(header.gid())?))
            .during("give an unpacked file its owner")?;
        if !is_link {
            let mode = header.mode().map_err(|e| self.corrupt(&e))? & 0o7777;
            fs::set_permissions(target, fs::Permissions::from_mode(mode))
                .during("give an unpacked file its mode")?;
        }
        Ok(())
    }
}
