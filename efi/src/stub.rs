//! Systemd's EFI stub: the small program at the head of the image that starts the kernel in it.

use std::io;
use std::path::Path;

use crate::EfiError;

/// Where Debian puts it.
pub const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// The package that it comes with.
pub const STUB_PACKAGE: &str = "systemd-boot-efi";

/// Reads the stub; when it is missing, the error says which package brings it.
pub fn read_stub(path: &Path) -> Result<Vec<u8>, EfiError> {
    std::fs::read(path).map_err(|source| {
        let hint = if source.kind() == io::ErrorKind::NotFound {
            format!(", systemd's EFI stub: install it with `apt-get install {STUB_PACKAGE}`")
        } else {
            String::new()
        };
        EfiError::Unreadable { path: path.into(), hint, source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_stub_names_its_package() {
        let error = read_stub(Path::new("/nonexistent/stub")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/stub") && error.contains(STUB_PACKAGE), "{error}");
    }
}
