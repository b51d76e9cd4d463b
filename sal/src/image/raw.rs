//! Images that are one file, such as a disk or a kernel: kept as they are, for clones of them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rhizome_model::Code;

use super::{KNOWN, key, known_digest, resolve, stamp};
use crate::btrfs;
use crate::error::{During, Result, SalError, shown};
use crate::files;
use crate::lock::Lock;
use crate::node::Node;

const BLOCK: usize = 1 << 20;
const NAME: &str = "image.raw";

/// The file of an image, imported if need be. It is not to be written.
pub(crate) fn obtain_raw(node: &Node, image: &str) -> Result<PathBuf> {
    let source = resolve(&node.config.image_roots, image)?;
    if !source.is_file() {
        let message = format!("image {image}: it is a folder, and a raw image is one file");
        return Err(SalError::new(Code::ImageCorrupt, message));
    }
    // A tar archive of the same name would be another image.
    let key = format!("raw-{}", key(&source)?);
    if let Some(found) = known(node, &key) {
        return Ok(found);
    }
    let lock = Lock::take(&node.locks().join(format!("image.{key}")))?;
    let path = match known(node, &key) {
        Some(found) => found,
        None => import(node, image, &source, &key)?,
    };
    lock.remove()?;
    Ok(path)
}

fn known(node: &Node, key: &str) -> Option<PathBuf> {
    let folder = folder_of(node, &known_digest(node, key)?);
    node.store.has(&folder).then(|| folder.join(NAME))
}

fn folder_of(node: &Node, digest: &str) -> PathBuf {
    node.images().join(format!("raw-{digest}"))
}

fn import(node: &Node, image: &str, source: &Path, key: &str) -> Result<PathBuf> {
    let begin = std::time::Instant::now();
    let new = node.images().join(format!(".new-{key}"));
    node.store.delete(&new)?;
    let imported = fill(node, image, source, &new);
    if imported.is_err() {
        // The import's own error is the one to tell.
        if let Err(error) = node.store.delete(&new) {
            tracing::warn!(%error, image, "what is left of a refused image stays");
        }
    }
    let digest = imported?;
    let path = folder_of(node, &digest);
    if node.store.has(&path) {
        node.store.delete(&new)?;
    } else {
        // All of it is on disk before it has its name.
        node.store.sync()?;
        std::fs::rename(&new, &path).during(format_args!("name the image {}", shown(&path)))?;
    }
    files::make_folder(&node.images().join(KNOWN))?;
    files::replace(&node.images().join(KNOWN).join(key), digest.as_bytes(), false)?;
    let duration_ms = begin.elapsed().as_millis();
    tracing::info!(image, digest, duration_ms, "an image is imported");
    Ok(path.join(NAME))
}

/// Copies an image, with its holes; answers its digest.
fn fill(node: &Node, image: &str, source: &Path, new: &Path) -> Result<String> {
    let what = || format!("import the image {}", shown(source));
    let mut from = File::open(source).during(what())?;
    let before = from.metadata().during(what())?;
    node.store.create(new)?;
    // Only what is without copy-on-write can be cloned into what is.
    btrfs::without_cow(new)?;
    let mut to = File::create(new.join(NAME)).during(what())?;
    let mut hash = blake3::Hasher::new();
    let mut block = vec![0; BLOCK];
    loop {
        let n = from.read(&mut block).during(what())?;
        if n == 0 {
            break;
        }
        hash.update(&block[..n]);
        if block[..n].iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Current(n as i64)).during(what())?;
        } else {
            to.write_all(&block[..n]).during(what())?;
        }
    }
    to.set_len(before.len()).during(what())?;
    let after = from.metadata().during(what())?;
    if stamp(&before) != stamp(&after) {
        let message = format!("image {image}: it was written while it was read; try again");
        return Err(SalError::new(Code::ImageCorrupt, message));
    }
    Ok(hash.finalize().to_hex().to_string())
}
