//! A file at its place: complete, or not at all.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::EfiError;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub bytes: u64,
    /// In hexadecimal.
    pub blake3: String,
}

/// Fills a file beside `out`, and renames it to `out` when all of it is on the disk.
pub(crate) fn place(
    out: &Path,
    fill: impl FnOnce(&File) -> Result<(), EfiError>,
) -> Result<Written, EfiError> {
    // A rename would put a file where the device was.
    if out.metadata().is_ok_and(|m| !m.is_file()) {
        return Err(EfiError::unusable(
            out.display().to_string(),
            "it is no file: write the image to a file, and copy it to a disk with dd",
        ));
    }
    let writing = || EfiError::writing(out.display().to_string());
    let folder = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let new = tempfile::Builder::new()
        .prefix(".rhizome-image-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(writing())?;
    fill(new.as_file())?;
    new.as_file().sync_all().map_err(writing())?;
    let written = hash(new.path()).map_err(writing())?;
    new.persist(out).map_err(|e| writing()(e.error))?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(writing())?;
    Ok(written)
}

fn hash(path: &Path) -> io::Result<Written> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(Written { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn content(mut file: &File) -> Result<(), EfiError> {
        file.write_all(b"abc").map_err(EfiError::writing("it"))
    }

    #[test]
    fn what_fails_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("image");
        std::fs::write(&out, "before").unwrap();
        let failed = place(&out, |file| {
            content(file)?;
            Err(EfiError::unusable("it", "no"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&out).unwrap(), b"before");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1, "nothing is left beside it");

        let written = place(&out, content).unwrap();
        assert_eq!(std::fs::read(&out).unwrap(), b"abc");
        let blake3 = blake3::hash(b"abc").to_hex().to_string();
        assert_eq!(written, Written { bytes: 3, blake3 });
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_device_or_folder_is_never_replaced() {
        let refused = place(Path::new("/dev/null"), content).unwrap_err().to_string();
        assert!(refused.contains("/dev/null") && refused.contains("dd"), "{refused}");
        assert!(place(Path::new("/"), content).is_err());
        let nowhere = place(Path::new("/nonexistent/image"), content).unwrap_err();
        assert!(matches!(nowhere, EfiError::Unwritable { .. }), "{nowhere}");
    }
}
