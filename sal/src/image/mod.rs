//! Images: where machines' root file systems come from.
//!
//! ```text
//!   file:///srv/web.tar ──(path, size, times, inode)──▶ images/.known/<key>: digest
//!                                                              │
//!                              images/<digest>  (read-only subvolume) ──snapshot──▶ machines/…
//! ```
//!
//! An image is imported once, under a temporary name that becomes its digest when all is there; so
//! what has a digest for a name is whole. Who wants the same image meanwhile waits. Images of virtual
//! machines are one raw file each, and cloned.

mod folder;
mod raw;
mod unpack;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rhizome_model::Code;

pub(crate) use self::raw::obtain_raw;
use crate::error::{During, Result, SalError, shown};
use crate::files;
use crate::lock::Lock;
use crate::node::Node;

const KNOWN: &str = ".known";

/// How an image is kept: by what its names begin with, and how it is filled in. That answers the digest
/// of its content.
struct Form {
    prefix: &'static str,
    fill: fn(&Node, &str, &Path, &Path) -> Result<String>,
}

const TREE: Form = Form { prefix: "", fill };

/// The read-only subvolume of an image, imported if need be.
pub(crate) fn obtain(node: &Node, image: &str) -> Result<PathBuf> {
    let source = resolve(&node.config.image_roots, image)?;
    TREE.obtain(node, image, &source)
}

impl Form {
    fn obtain(&self, node: &Node, image: &str, source: &Path) -> Result<PathBuf> {
        let key = format!("{}{}", self.prefix, key(source)?);
        if let Some(found) = self.known(node, &key) {
            return Ok(found);
        }
        let lock = Lock::take(&node.locks().join(format!("image.{key}")))?;
        let path = match self.known(node, &key) {
            Some(found) => found,
            None => self.import(node, image, source, &key)?,
        };
        lock.remove()?;
        Ok(path)
    }

    fn known(&self, node: &Node, key: &str) -> Option<PathBuf> {
        let digest = fs::read_to_string(node.images().join(KNOWN).join(key)).ok()?;
        // A power cut can leave an empty note.
        let digest = Some(digest).filter(|digest| digest.len() == blake3::OUT_LEN * 2)?;
        Some(self.folder(node, &digest)).filter(|path| node.store.has(path))
    }

    fn folder(&self, node: &Node, digest: &str) -> PathBuf {
        node.images().join(format!("{}{digest}", self.prefix))
    }

    fn import(&self, node: &Node, image: &str, source: &Path, key: &str) -> Result<PathBuf> {
        let begin = std::time::Instant::now();
        let new = node.images().join(format!(".new-{key}"));
        node.store.delete(&new)?;
        let imported = (self.fill)(node, image, source, &new);
        if imported.is_err() {
            // The import's own error is the one to tell.
            if let Err(error) = node.store.delete(&new) {
                tracing::warn!(%error, image, "what is left of a refused image stays");
            }
        }
        let digest = imported?;
        let path = self.folder(node, &digest);
        if node.store.has(&path) {
            node.store.delete(&new)?;
        } else {
            // All of it is on disk before it has its name.
            node.store.sync()?;
            node.store.set_readonly(&new)?;
            fs::rename(&new, &path).during(format_args!("name the image {}", shown(&path)))?;
        }
        files::make_folder(&node.images().join(KNOWN))?;
        files::replace(&node.images().join(KNOWN).join(key), digest.as_bytes(), false)?;
        let duration_ms = begin.elapsed().as_millis();
        tracing::info!(image, digest, duration_ms, "an image is imported");
        Ok(path)
    }
}

/// Removes what imports have left that were killed and never tried again.
pub(crate) fn sweep(node: &Node) -> Result<()> {
    for name in files::names(&node.images())? {
        if let Some(key) = name.strip_prefix(".new-") {
            // Held by an import that is alive.
            let lock = Lock::take(&node.locks().join(format!("image.{key}")))?;
            node.store.delete(&node.images().join(&name))?;
            lock.remove()?;
        }
    }
    Ok(())
}

/// The file or folder that an image's URL names.
fn resolve(roots: &[PathBuf], image: &str) -> Result<PathBuf> {
    let not_found =
        |why: String| SalError::new(Code::ImageNotFound, format!("image {image}: {why}"));
    let path = Path::new(image.strip_prefix("file://").unwrap_or(image));
    let path = path
        .canonicalize()
        .map_err(|e| not_found(format!("{e}; put the image on the node, or correct its path")))?;
    let inside = roots.iter().flat_map(|r| r.canonicalize()).any(|root| path.starts_with(root));
    if inside {
        Ok(path)
    } else {
        let roots: Vec<_> = roots.iter().map(|r| r.display().to_string()).collect();
        Err(not_found(format!("it is not inside a folder for images ({})", roots.join(", "))))
    }
}

/// What changes when the image does.
fn key(source: &Path) -> Result<String> {
    let stamp = if source.is_dir() {
        folder::stamp(source)?
    } else {
        stamp(&fs::metadata(source).during(format_args!("look at the image {}", shown(source)))?)
    };
    let text = format!("{}\n{stamp}", source.display());
    Ok(blake3::hash(text.as_bytes()).to_hex()[..32].to_owned())
}

fn stamp(meta: &fs::Metadata) -> String {
    format!(
        "{} {}.{} {}.{} {}",
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
        meta.ino()
    )
}

/// Makes the subvolume of an image; answers the digest of its content.
fn fill(node: &Node, image: &str, source: &Path, new: &Path) -> Result<String> {
    if source.is_dir() {
        node.store.create(new)?;
        folder::copy(image, source, new)?;
        return folder::digest(new);
    }
    let mut file = File::open(source).during(format_args!("open the image {}", shown(source)))?;
    let before = file.metadata().during(format_args!("look at the image {}", shown(source)))?;
    let mut hash = blake3::Hasher::new();
    hash.update_reader(&mut file).during(format_args!("read the image {}", shown(source)))?;
    let digest = hash.finalize().to_hex().to_string();
    node.store.create(new)?;
    if node.store.has(&node.images().join(&digest)) {
        return Ok(digest);
    }
    unpack::unpack(image, &mut file, new)?;
    let after = file.metadata().during(format_args!("look at the image {}", shown(source)))?;
    if stamp(&before) != stamp(&after) {
        return Err(SalError::new(
            Code::ImageCorrupt,
            format!("image {image}: it was written while it was read; try again"),
        ));
    }
    Ok(digest)
}

/// A symbolic link whose way leads above the root. One with an absolute target does not: inside the
/// machine it begins at the machine's own root.
fn link_escapes(parent: &Path, target: &Path) -> bool {
    let mut depth = parent.components().count();
    if target.is_absolute() {
        depth = 0;
    }
    for part in target.components() {
        match part {
            std::path::Component::ParentDir if depth == 0 => return !target.is_absolute(),
            std::path::Component::ParentDir => depth -= 1,
            std::path::Component::Normal(_) => depth += 1,
            _ => {}
        }
    }
    false
}

fn unsafe_image(image: &str, entry: &Path, why: &str) -> SalError {
    SalError::new(
        Code::ImageUnsafe,
        format!("image {image}: '{}' {why}; build the image without it", entry.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_above_the_root() {
        for (parent, target, escapes) in [
            ("bin", "busybox", false),
            ("bin", "/bin/busybox", false),
            ("usr/bin", "../../etc/x", false),
            ("usr/bin", "../../../etc/x", true),
            ("", "..", true),
            ("a", "b/../../c", false),
            ("a", "b/../../../c", true),
        ] {
            assert_eq!(link_escapes(Path::new(parent), Path::new(target)), escapes, "{target}");
        }
    }
}
