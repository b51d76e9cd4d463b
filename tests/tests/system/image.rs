//! The image of the tests: Debian's busybox.

use std::path::{Path, PathBuf};
use std::process::Command;

/// `make setup` builds it; a test that runs alone builds its own.
pub fn busybox(folder: &Path) -> String {
    let image = match std::env::var_os("RHIZOME_TEST_IMAGE").map(PathBuf::from) {
        Some(image) if image.exists() => image,
        _ => {
            let image = folder.join("busybox.tar");
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-image.sh");
            let status = Command::new(script).arg(&image).status().unwrap();
            assert!(status.success());
            image
        }
    };
    format!("file://{}", image.display())
}
