//! The TPM against Debian's swtpm.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rhizome_model::Code;
use rhizome_sal::Tpm;

/// A TPM in software, with a state of its own. Dropping it ends it.
struct Chip {
    process: Child,
    socket: PathBuf,
}

impl Chip {
    fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let socket = dir.join("chip");
        // tpm2-tools look for it at this name.
        let control = dir.join("chip.ctrl");
        for old in [&socket, &control] {
            let _ = std::fs::remove_file(old);
        }
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear,not-need-init"])
            .arg("--tpmstate")
            .arg(format!("dir={}", dir.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", control.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !(socket.exists() && control.exists()) {
            assert!(Instant::now() < deadline, "swtpm did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, socket }
    }

    fn tpm(&self) -> Tpm {
        Tpm::at(&format!("swtpm:path={}", self.socket.display()))
    }
}

impl Drop for Chip {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn what_one_tpm_seals_it_opens_again_and_no_other_does() {
    let dir = tempfile::tempdir().unwrap();
    let mine = dir.path().join("mine");
    let chip = Chip::start(&mine);
    let secret = "a1".repeat(32);
    let blob = chip.tpm().seal(&secret).unwrap();
    assert!(!String::from_utf8_lossy(&blob).contains(&secret[..16]));
    for _ in 0..3 {
        assert_eq!(chip.tpm().open(&blob).unwrap(), secret);
    }
    for bad in [&b""[..], b"{}", &blob[..blob.len() / 2], &[b'x'; 5000]] {
        assert_eq!(chip.tpm().open(bad).unwrap_err().code(), Code::IdentityLost);
    }
    let mut changed = blob.clone();
    let at = blob.len() / 2;
    changed[at] = if blob[at] == b'0' { b'1' } else { b'0' };
    assert_eq!(chip.tpm().open(&changed).unwrap_err().code(), Code::IdentityLost);
    let other = Chip::start(&dir.path().join("other"));
    let error = other.tpm().open(&blob).unwrap_err();
    assert_eq!(error.code(), Code::IdentityLost);
    assert!(error.to_string().contains("sealed by another one"), "{error}");
    // The power goes and comes back.
    drop(chip);
    assert_eq!(Chip::start(&mine).tpm().open(&blob).unwrap(), secret);
}

#[test]
fn a_tpm_that_is_not_there_and_secrets_that_do_not_fit() {
    let nowhere = Tpm::at("swtpm:path=/nonexistent/chip");
    assert_eq!(nowhere.seal("secret").unwrap_err().code(), Code::ToolFailed);
    assert_eq!(nowhere.seal("").unwrap_err().code(), Code::BadRequest);
    assert_eq!(nowhere.seal(&"x".repeat(129)).unwrap_err().code(), Code::BadRequest);
}
