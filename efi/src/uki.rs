//! A Unified Kernel Image: one EFI program that holds kernel, initramfs and command line.

use crate::pe::Pe;
use crate::{EfiError, MAX_BYTES};

/// The section by which tools know systemd's stub, and what it says.
const STUB_MARK: (&str, &[u8]) = (".sdmagic", b"systemd-stub");
/// COMMAND_LINE_SIZE of the kernel on x86, with its final NUL: it cuts off what is longer.
const MAX_CMDLINE: usize = 2047;
/// The first protocol whose header says whether the kernel has a 64-bit entry.
const BOOT_PROTOCOL: u16 = 0x020c;
const XLF_KERNEL_64: u8 = 1;

/// How an initramfs can begin: cpio in two forms, and what kernels unpack.
const INITRD_MAGIC: [&[u8]; 9] = [
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"BZh",
    b"\x5d\0\0",
    b"\xfd7zXZ\0",
    b"\x89LZO",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
];

/// What an image is made of.
#[derive(Debug, Clone, Copy)]
pub struct Uki<'a> {
    /// Systemd's EFI stub ([`read_stub`](crate::read_stub)).
    pub stub: &'a [u8],
    /// The text of an os-release file: boot menus show its names.
    pub osrel: &'a str,
    /// What the kernel is told; may be empty.
    pub cmdline: &'a str,
    /// A bzImage for x86-64.
    pub kernel: &'a [u8],
    /// An initramfs: cpio, compressed or not.
    pub initrd: &'a [u8],
}

impl Uki<'_> {
    /// The EFI program. The kernel is its last section: one that unpacks itself where it lies
    /// writes behind its end.
    pub fn assemble(&self) -> Result<Vec<u8>, EfiError> {
        self.check_size()?;
        let stub = self.stub()?;
        self.check_osrel()?;
        self.check_cmdline()?;
        check_kernel(self.kernel)?;
        if !INITRD_MAGIC.iter().any(|magic| self.initrd.starts_with(magic)) {
            return Err(EfiError::unusable(
                "the initrd",
                "it is neither a cpio archive (newc) nor compressed in a way the kernel knows",
            ));
        }
        let mut sections = vec![(".osrel", self.osrel.as_bytes())];
        // A section without bytes is none.
        if !self.cmdline.is_empty() {
            sections.push((".cmdline", self.cmdline.as_bytes()));
        }
        sections.extend([(".initrd", self.initrd), (".linux", self.kernel)]);
        stub.append(&sections).map_err(Pe::refused("the EFI stub"))
    }

    fn check_size(&self) -> Result<(), EfiError> {
        let parts = [self.stub.len(), self.osrel.len(), self.kernel.len(), self.initrd.len()];
        let bytes = parts.iter().map(|n| *n as u64).sum();
        if bytes > MAX_BYTES {
            let what = "the image (stub, kernel and initrd)".into();
            return Err(EfiError::TooLarge { what, bytes, limit: MAX_BYTES });
        }
        Ok(())
    }

    fn stub(&self) -> Result<Pe<'_>, EfiError> {
        let refused = || Pe::refused("the EFI stub");
        let stub = Pe::parse(self.stub).map_err(refused())?;
        let (name, mark) = STUB_MARK;
        let content = stub.section(name).unwrap_or_default();
        if !content.windows(mark.len()).any(|w| w == mark) {
            return Err(refused()("it is an EFI program, but not systemd's stub".into()));
        }
        for name in [".osrel", ".cmdline", ".initrd", ".linux"] {
            if stub.section(name).is_some() {
                return Err(refused()(format!("it has a section {name}: it is an image already")));
            }
        }
        Ok(stub)
    }

    fn check_osrel(&self) -> Result<(), EfiError> {
        let named =
            self.osrel.lines().any(|l| l.strip_prefix("ID=").is_some_and(|v| !v.is_empty()));
        if named && !self.osrel.contains('\0') {
            return Ok(());
        }
        Err(EfiError::unusable("the os-release text", "it has no line ID=…, or is no text"))
    }

    fn check_cmdline(&self) -> Result<(), EfiError> {
        let why = if self.cmdline.len() > MAX_CMDLINE {
            format!("it has {} bytes, and kernels read {MAX_CMDLINE}", self.cmdline.len())
        } else if self.cmdline.chars().any(char::is_control) {
            "it has more than one line, or characters that control".into()
        } else {
            return Ok(());
        };
        Err(EfiError::unusable("the command line", why))
    }
}

fn check_kernel(kernel: &[u8]) -> Result<(), EfiError> {
    let field = |at: usize, length: usize| kernel.get(at..at + length).unwrap_or_default();
    let version = field(0x206, 2).iter().rev().fold(0, |v: u16, b| v << 8 | u16::from(*b));
    let why =
        if field(0, 2) != b"MZ" || field(0x1fe, 2) != b"\x55\xaa" || field(0x202, 4) != b"HdrS" {
            "it is no Linux kernel with an EFI stub (bzImage; Debian: /boot/vmlinuz-…)"
        } else if version < BOOT_PROTOCOL || field(0x236, 1)[0] & XLF_KERNEL_64 == 0 {
            "it is no kernel for x86-64"
        } else {
            return Ok(());
        };
    Err(EfiError::unusable("the kernel", why))
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::pe::tests::{KERNEL, stub};

    static STUB: LazyLock<Vec<u8>> = LazyLock::new(stub);

    fn assemble<'a>(change: impl FnOnce(&mut Uki<'a>)) -> Result<Vec<u8>, EfiError> {
        let mut uki = Uki {
            stub: &STUB,
            osrel: "ID=test\n",
            cmdline: "console=ttyS0",
            kernel: &KERNEL,
            initrd: b"070701 and more",
        };
        change(&mut uki);
        uki.assemble()
    }

    fn refusal<'a>(change: impl FnOnce(&mut Uki<'a>)) -> String {
        assemble(change).unwrap_err().to_string()
    }

    #[test]
    fn the_sections_hold_what_was_given() {
        let image = assemble(|_| ()).unwrap();
        let pe = Pe::parse(&image).unwrap();
        assert_eq!(pe.section(".osrel").unwrap(), b"ID=test\n");
        assert_eq!(pe.section(".cmdline").unwrap(), b"console=ttyS0");
        assert_eq!(pe.section(".initrd").unwrap(), b"070701 and more");
        assert_eq!(pe.section(".linux").unwrap(), KERNEL);
        let image = assemble(|u| u.cmdline = "").unwrap();
        assert!(Pe::parse(&image).unwrap().section(".cmdline").is_none());
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        assert_eq!(assemble(|_| ()).unwrap(), assemble(|_| ()).unwrap());
        assert_ne!(assemble(|_| ()).unwrap(), assemble(|u| u.cmdline = "x").unwrap());
    }

    #[test]
    fn what_is_not_what_it_must_be_is_refused_by_its_name() {
        let image = assemble(|_| ()).unwrap();
        assert!(refusal(|u| u.stub = &image).contains("an image already"));
        assert!(refusal(|u| u.stub = b"#!/bin/sh").contains("does not begin with MZ"));
        assert!(refusal(|u| u.kernel = b"MZ").contains("the kernel"));
        assert!(refusal(|u| u.initrd = &KERNEL).contains("the initrd"));
        assert!(refusal(|u| u.initrd = b"").contains("the initrd"));
        assert!(refusal(|u| u.osrel = "NAME=x").contains("ID="));
        assert!(refusal(|u| u.cmdline = "a\nb").contains("more than one line"));
        let long = "x".repeat(MAX_CMDLINE + 1);
        assert!(refusal(|u| u.cmdline = &long).contains("2048 bytes"));
        assert!(assemble(|u| u.cmdline = &long[1..]).is_ok());
    }

    #[test]
    fn a_kernel_of_another_kind_is_refused() {
        for (at, byte) in [(0, b'Z'), (0x1fe, 0), (0x202, b'h'), (0x206, 0x0b), (0x236, 0)] {
            let mut kernel = KERNEL;
            kernel[at] = byte;
            assert!(refusal(|u| u.kernel = &kernel).contains("the kernel"), "{at:#x}");
        }
    }

    #[test]
    fn another_efi_program_is_no_stub() {
        let mut other = stub();
        let at = other.windows(12).position(|w| w == STUB_MARK.1).unwrap();
        other[at] = b'S';
        assert!(refusal(|u| u.stub = &other).contains("not systemd's stub"));
    }

    proptest! {
        #[test]
        fn any_kernel_and_initrd_never_panic(
            kernel in proptest::collection::vec(any::<u8>(), 0..0x300),
            initrd in proptest::collection::vec(any::<u8>(), 0..16),
        ) {
            let _ = assemble(|u| u.kernel = &kernel);
            let _ = assemble(|u| u.initrd = &initrd);
        }
    }
}
