//! Every layer of the image, read by the tool that the world reads it with.

use std::path::{Path, PathBuf};

use rhizome_efi::{Uki, initramfs, write_disk, write_uki};
use tempfile::TempDir;

use crate::tools::{OSREL, kernel, program, root, run, stub, uki};

const CMDLINE: &str = "console=ttyS0 quiet";

struct Built {
    folder: TempDir,
    kernel: Vec<u8>,
    uki: Vec<u8>,
}

impl Built {
    fn new() -> Option<Self> {
        let busybox = program("busybox", "busybox-static")?;
        let kernel = std::fs::read(kernel()?).unwrap();
        let uki = uki(&kernel, CMDLINE, root(&busybox, "exit 0\n").path())?;
        Some(Self { folder: tempfile::tempdir().unwrap(), kernel, uki })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn disk(&self) -> PathBuf {
        let out = self.path("disk.img");
        write_disk(&self.uki, &out).unwrap();
        out
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn objdump_and_objcopy_find_the_sections() {
    let Some(objdump) = program("objdump", "binutils") else { return };
    let Some(objcopy) = program("objcopy", "binutils") else { return };
    let Some(built) = Built::new() else { return };
    let out = built.path("image.efi");
    write_uki(&built.uki, &out).unwrap();

    let listed = run(&objdump, &["-h", text(&out)]);
    let mut end = 0;
    for name in [".text", ".sdmagic", ".osrel", ".cmdline", ".initrd", ".linux"] {
        let line = listed.lines().find(|l| l.split_whitespace().nth(1) == Some(name));
        let fields: Vec<_> =
            line.unwrap_or_else(|| panic!("{name}: {listed}")).split_whitespace().collect();
        let number = |n: usize| u64::from_str_radix(fields[n], 16).unwrap();
        let (size, address) = (number(2), number(3));
        assert!(address >= end, "{name} overlaps what is before it: {listed}");
        end = address + size;
    }
    for (name, content) in [(".cmdline", CMDLINE.as_bytes()), (".linux", &built.kernel)] {
        let dump = built.path("dump");
        let dump_section = format!("{name}={}", text(&dump));
        run(&objcopy, &["-O", "binary", "--dump-section", &dump_section, text(&out), "/dev/null"]);
        assert!(std::fs::read(&dump).unwrap() == content, "{name} differs");
    }
}

#[test]
fn fsck_and_mtools_accept_the_system_partition() {
    let Some(fsck) = program("fsck.fat", "dosfstools") else { return };
    let Some(mdir) = program("mdir", "mtools") else { return };
    let Some(mcopy) = program("mcopy", "mtools") else { return };
    let Some(built) = Built::new() else { return };
    let disk = std::fs::read(built.disk()).unwrap();
    let esp = built.path("esp");
    std::fs::write(&esp, &disk[1 << 20..disk.len() - (1 << 20)]).unwrap();

    let said = run(&fsck, &["-n", "-v", text(&esp)]);
    assert!(said.contains("32 bit entries"), "{said}");
    for complaint in ["differ", "uninitialized", "Expected", "wrong"] {
        assert!(!said.contains(complaint), "{said}");
    }
    let said = run(&mdir, &["-i", text(&esp), "::/EFI/BOOT"]);
    assert!(said.contains("BOOTX64  EFI") && said.contains("1980-01-01"), "{said}");
    let back = built.path("back.efi");
    run(&mcopy, &["-i", text(&esp), "::/EFI/BOOT/BOOTX64.EFI", text(&back)]);
    assert!(std::fs::read(&back).unwrap() == built.uki);
}

#[test]
fn sgdisk_and_sfdisk_accept_the_table() {
    let Some(sgdisk) = program("sgdisk", "gdisk") else { return };
    let Some(sfdisk) = program("sfdisk", "fdisk") else { return };
    let Some(built) = Built::new() else { return };
    let disk = built.disk();

    let said = run(&sgdisk, &["-v", text(&disk)]);
    assert!(said.contains("No problems found"), "{said}");
    let said = run(&sfdisk, &["--verify", text(&disk)]);
    assert!(said.contains("No errors detected"), "{said}");
    let said = run(&sfdisk, &["--dump", text(&disk)]);
    assert!(said.contains("label: gpt") && said.contains("start=        2048"), "{said}");
    assert!(said.contains("type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B"), "{said}");
}

#[test]
fn cpio_unpacks_the_initramfs() {
    let Some(busybox) = program("busybox", "busybox-static") else { return };
    let root = root(&busybox, "exit 0\n");
    let (first, second) = (root.path().join("dev/first"), root.path().join("proc/second"));
    std::fs::write(&first, "linked").unwrap();
    std::fs::hard_link(&first, &second).unwrap();
    std::os::unix::fs::symlink("busybox", root.path().join("bin/sh")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("initramfs");
    initramfs(root.path(), std::fs::File::create(&archive).unwrap()).unwrap();

    let unpacked = folder.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let script = format!("cd {} && busybox cpio -idm < {}", text(&unpacked), text(&archive));
    run(Path::new("/bin/sh"), &["-ec", &script]);
    for name in ["init", "bin/busybox", "bin/sh", "dev/first", "proc/second"] {
        let read = |root: &Path| std::fs::read(root.join(name)).unwrap();
        assert!(read(root.path()) == read(&unpacked), "{name} differs");
    }
    let number = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        unpacked.join(name).metadata().unwrap().ino()
    };
    assert_eq!(number("dev/first"), number("proc/second"), "a hard link became a copy");
}

/// Debian's stub with each byte of its headers altered, and cut anywhere: refused, or still whole.
#[test]
fn the_real_stub_altered_or_cut_never_panics() {
    const HEADERS: usize = 0x400;
    const CUT_EVERY: usize = 509;
    let Some(whole) = stub() else { return };
    let mut kernel = [0; 0x300];
    for (at, bytes) in [(0, &b"MZ"[..]), (0x1fe, b"\x55\xaaxxHdrS\x0f\x02"), (0x236, b"\x7f")] {
        kernel[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let assemble = |stub: &[u8]| {
        Uki { stub, osrel: OSREL, cmdline: CMDLINE, kernel: &kernel, initrd: b"070701" }.assemble()
    };
    let holds = |image: &[u8]| image.windows(CMDLINE.len()).any(|w| w == CMDLINE.as_bytes());
    assert!(holds(&assemble(&whole).unwrap()));
    let mut refused = 0;
    for at in 0..HEADERS {
        for byte in [0xff, whole[at] ^ 0x80] {
            let mut altered = whole.clone();
            altered[at] = byte;
            refused += usize::from(assemble(&altered).is_err());
        }
    }
    assert!((200..HEADERS).contains(&refused), "{refused} alterations were refused");
    for length in (0..whole.len()).step_by(CUT_EVERY) {
        // Behind the last section are symbols: what is cut there is not missed.
        let cut = assemble(&whole[..length]);
        assert!(cut.is_err() || length >= 0x11400, "cut at {length:#x}");
    }
}
