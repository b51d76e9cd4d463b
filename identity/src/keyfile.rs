//! Keys on disk: one line with the seed in hexadecimal digits, readable by its owner only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use zeroize::Zeroizing;

use crate::{KeyError, SigningKey};

/// A key file is one short line; whatever is longer is something else.
const MAX_FILE_BYTES: u64 = 256;

impl SigningKey {
    /// Reads a key file. One that others can read is refused: the key may be known to them.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let fail =
            |source| KeyError::File { what: "cannot read the key file", path: path.into(), source };
        let mut file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if meta.mode() & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.into() });
        }
        if meta.uid() != nix::unistd::geteuid().as_raw() && meta.uid() != 0 {
            return Err(KeyError::Foreign { path: path.into(), owner: meta.uid() });
        }
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES as usize));
        let malformed = |why| KeyError::Malformed { path: path.into(), why };
        match (&mut file).take(MAX_FILE_BYTES).read_to_string(&mut text) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(malformed("it is not text"));
            }
            Err(e) => return Err(fail(e)),
        }
        if text.contains("-----BEGIN") {
            return Err(malformed("it is an SSH or PEM key; `rhizome key import` reads those"));
        }
        Self::from_hex_seed(&text).map_err(|_| malformed("it does not hold 64 hexadecimal digits"))
    }

    /// The key of a file; a new one where there is none.
    pub fn load_or_new(path: &Path) -> Result<Self, KeyError> {
        if path.exists() {
            return Self::load(path);
        }
        let key = Self::generate()?;
        key.save_new(path)?;
        Ok(key)
    }

    /// Writes a new key file. It appears whole and on disk, or not at all; an existing file is
    /// never replaced.
    pub fn save_new(&self, path: &Path) -> Result<(), KeyError> {
        let fail = |what| move |source| KeyError::File { what, path: path.into(), source };
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(KeyError::Random)?;
        // Beside the target, so that the move is within one file system.
        let draft = folder.join(format!(".key-draft-{}", hex::encode(random)));
        let moved = write_synced(&draft, &self.to_hex_seed())
            .and_then(|()| {
                renameat2(AT_FDCWD, &draft, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE)
                    .map_err(io::Error::from)
            })
            .map_err(fail("cannot write the new key file"));
        if moved.is_err() {
            // What stays behind when this fails too is a key that nobody uses.
            let _ = std::fs::remove_file(&draft);
        }
        moved?;
        File::open(folder).and_then(|f| f.sync_all()).map_err(fail("cannot sync the folder of"))
    }
}

fn write_synced(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(line.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_file_is_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = SigningKey::generate().unwrap();
        key.save_new(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SigningKey::load(&path).unwrap().key_id(), key.key_id());
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = SigningKey::generate().unwrap();
        first.save_new(&path).unwrap();
        let error = SigningKey::generate().unwrap().save_new(&path).unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
        assert_eq!(SigningKey::load(&path).unwrap().key_id(), first.key_id());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a draft stayed behind");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        SigningKey::generate().unwrap().save_new(&path).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = SigningKey::load(&path).unwrap_err().to_string();
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_file_is_refused_and_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (content, says) in [
            (&b""[..], "64 hexadecimal"),
            (b"0x1234", "64 hexadecimal"),
            (b"\xff\xff", "not text"),
            (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA", "rhizome key import"),
        ] {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let error = SigningKey::load(&path).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("1234"), "{error}");
        }
        let missing = SigningKey::load(&dir.path().join("none")).unwrap_err();
        assert!(matches!(missing, KeyError::File { .. }));
    }
}
