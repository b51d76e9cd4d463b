//! The image of the tests: Debian's busybox.

use std::path::{Path, PathBuf};
use std::process::Command;

use rhizome_tests::System;

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

/// A script of a machine that writes a line into its volume whenever it starts.
pub fn counts_its_starts(system: &System) -> String {
    let image = busybox(&system.state);
    system.script(
        "app.rhai",
        &format!(
            "let data = volume(\"data\", #{{ size: \"16MiB\" }});
             machine(\"m\", #{{ image: \"{image}\", mounts: [#{{ volume: data, path: \"/data\" }}],
                 command: [\"/bin/sh\", \"-c\", \"echo start >> /data/starts; exec sleep 100000\"] }});"
        ),
    )
}
