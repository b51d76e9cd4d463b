//! Images that are one file, such as a disk or a kernel: kept as they are, for clones of them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rhizome_model::Code;

use super::{Form, resolve, stamp};
use crate::btrfs;
use crate::error::{During, Result, SalError, shown};
use crate::node::Node;

const BLOCK: usize = 1 << 20;
const NAME: &str = "image.raw";
/// A tar archive of the same name would be another image.
const RAW: Form = Form { prefix: "raw-", fill };

/// The file of an image, imported if need be. It is not to be written.
pub(crate) fn obtain_raw(node: &Node, image: &str) -> Result<PathBuf> {
    let source = resolve(&node.config.image_roots, image)?;
    if !source.is_file() {
        let message = format!("image {image}: it is a folder, and a raw image is one file");
        return Err(SalError::new(Code::ImageCorrupt, message));
    }
    RAW.obtain(node, image, &source).map(|folder| folder.join(NAME))
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
