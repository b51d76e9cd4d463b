//! Firmware starts the image, the kernel starts our init.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rhizome_efi::write_disk;

use crate::tools::{kernel, need, program, root, uki};

const DEADLINE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What init says, with what it found: the command line, and a file of the initramfs.
const SCRIPT: &str = r#"
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
echo "init says: $(/bin/busybox cat /greeting) $(/bin/busybox cat /proc/cmdline)" > /dev/ttyS0
/bin/busybox poweroff -f
"#;

/// A virtual machine without a network; it ends with the test.
struct Machine(Child);

impl Machine {
    fn start(qemu: &Path, firmware: &Path, variables: &Path, disk: &Path, serial: &Path) -> Self {
        let flash = |path: &Path, only: &str| {
            format!("if=pflash,format=raw,readonly={only},file={}", path.display())
        };
        let child = Command::new(qemu)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "q35", "-accel", "tcg", "-m", "512"])
            .args(["-drive", &flash(firmware, "on"), "-drive", &flash(variables, "off")])
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=raw,snapshot=on,file={}", disk.display()))
            .args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"])
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .stdin(Stdio::null())
            .stderr(File::create(serial.with_extension("errors")).unwrap())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits until it is off.
    fn ended(&mut self) -> Option<ExitStatus> {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        None
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail when it ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn firmware_boots_the_disk_into_our_init() {
    let Some(qemu) = program("qemu-system-x86_64", "qemu-system-x86") else { return };
    let Some(firmware) = need("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf") else { return };
    let Some(variables) = need("/usr/share/OVMF/OVMF_VARS_4M.fd", "ovmf") else { return };
    let Some(busybox) = program("busybox", "busybox-static") else { return };
    let Some(kernel) = kernel() else { return };

    let root = root(&busybox, SCRIPT);
    std::fs::write(root.path().join("greeting"), "hello").unwrap();
    let kernel = std::fs::read(kernel).unwrap();
    let Some(uki) = uki(&kernel, "console=ttyS0 quiet rhizome.test=42", root.path()) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { folder.path().join(name) };
    write_disk(&uki, &at("disk.img")).unwrap();
    std::fs::copy(variables, at("variables")).unwrap();

    let began = Instant::now();
    let mut machine =
        Machine::start(&qemu, &firmware, &at("variables"), &at("disk.img"), &at("serial"));
    let status = machine.ended();
    let said = String::from_utf8_lossy(&std::fs::read(at("serial")).unwrap()).into_owned();
    let errors = std::fs::read_to_string(at("serial.errors")).unwrap();
    let line = said.lines().find(|l| l.contains("init says:"));
    assert!(
        line.is_some_and(|l| l.contains("hello console=ttyS0 quiet rhizome.test=42")),
        "{status:?} after {:?}: {said}{errors}",
        began.elapsed()
    );
    assert!(status.is_some_and(|s| s.success()), "it did not power off: {status:?} {errors}");
    eprintln!("booted in {:?}", began.elapsed());
}
