//! Whether a file is what a virtual machine can be booted from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rhizome_model::Code;

use crate::error::{Result, SalError, shown};

/// Of a note segment, this much is read.
const MAX_NOTES: u64 = 64 << 10;
/// Real kernels have a handful.
const MAX_SEGMENTS: u16 = 64;
const PT_NOTE: u32 = 4;
/// The entry of a kernel for para-virtualised machines.
const PVH_ENTRY: u32 = 18;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelKind {
    /// Linux, compressed.
    BzImage,
    /// An ELF program with a PVH entry, such as Linux's `vmlinux`.
    PvhElf,
}

/// What kind of kernel a file is.
pub fn check_kernel(path: &Path) -> Result<KernelKind> {
    let file = open(path, "kernel")?;
    let kind = kernel_kind(&file).map_err(|e| unreadable(path, &e))?;
    kind.ok_or_else(|| {
        let message = format!(
            "{} is no kernel: give a bzImage, or an ELF file with a PVH entry",
            shown(path)
        );
        SalError::new(Code::ImageCorrupt, message)
    })
}

/// Whether a file is an archive that a kernel unpacks: cpio, compressed or not.
pub fn check_initramfs(path: &Path) -> Result<()> {
    const BEGINNINGS: [&[u8]; 9] = [
        b"070701",
        b"070702",
        b"\x1f\x8b",
        b"\xfd7zXZ\0",
        b"\x28\xb5\x2f\xfd",
        b"\x02\x21\x4c\x18",
        b"\x04\x22\x4d\x18",
        b"BZh",
        b"\x5d\0\0",
    ];
    let file = open(path, "initramfs")?;
    let mut head = [0; 8];
    let read = read_some(&file, &mut head, 0).map_err(|e| unreadable(path, &e))?;
    if BEGINNINGS.iter().any(|beginning| head[..read].starts_with(beginning)) {
        return Ok(());
    }
    let message =
        format!("{} is no initramfs: give a cpio archive (newc), plain or compressed", shown(path));
    Err(SalError::new(Code::ImageCorrupt, message))
}

fn open(path: &Path, what: &str) -> Result<File> {
    let file = File::open(path).and_then(|file| {
        let is_file = file.metadata()?.is_file();
        if is_file { Ok(file) } else { Err(io::Error::other("it is not a file")) }
    });
    file.map_err(|e| {
        let code = match e.kind() {
            io::ErrorKind::NotFound => Code::ImageNotFound,
            _ => Code::ImageCorrupt,
        };
        SalError::new(code, format!("there is no {what} {}: {e}", shown(path)))
    })
}

fn unreadable(path: &Path, error: &io::Error) -> SalError {
    SalError::new(Code::ImageCorrupt, format!("cannot read {}: {error}", shown(path)))
}

fn kernel_kind(file: &File) -> io::Result<Option<KernelKind>> {
    let mut head = [0; 0x206];
    let read = read_some(file, &mut head, 0)?;
    if read == head.len() && head[0x1fe..0x200] == [0x55, 0xaa] && &head[0x202..] == b"HdrS" {
        return Ok(Some(KernelKind::BzImage));
    }
    // 64 bits, little-endian, for x86-64.
    let is_elf = read >= 64 && head.starts_with(b"\x7fELF\x02\x01") && u16_at(&head, 18) == 62;
    if !is_elf {
        return Ok(None);
    }
    let (table, size, count) = (u64_at(&head, 32), u16_at(&head, 54), u16_at(&head, 56));
    if size < 56 {
        return Ok(None);
    }
    for n in 0..u64::from(count.min(MAX_SEGMENTS)) {
        let mut segment = [0; 56];
        let at = table.saturating_add(n * u64::from(size));
        if read_some(file, &mut segment, at)? < segment.len() {
            return Ok(None);
        }
        if u32_at(&segment, 0) == PT_NOTE {
            let length = u64_at(&segment, 32).min(MAX_NOTES);
            let mut notes = vec![0; usize::try_from(length).unwrap_or(0)];
            let read = read_some(file, &mut notes, u64_at(&segment, 8))?;
            if has_pvh_entry(&notes[..read]) {
                return Ok(Some(KernelKind::PvhElf));
            }
        }
    }
    Ok(None)
}

fn has_pvh_entry(mut notes: &[u8]) -> bool {
    const HEADER: usize = 12;
    while notes.len() >= HEADER {
        let (name, content, kind) = (u32_at(notes, 0), u32_at(notes, 4), u32_at(notes, 8));
        let (name_end, end) = (
            HEADER.saturating_add(name as usize),
            HEADER
                .saturating_add((name as usize).next_multiple_of(4))
                .saturating_add((content as usize).next_multiple_of(4)),
        );
        if notes.get(HEADER..name_end) == Some(b"Xen\0") && kind == PVH_ENTRY {
            return true;
        }
        notes = notes.get(end..).unwrap_or_default();
    }
    false
}

fn u16_at(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([from[at], from[at + 1]])
}

fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from(u16_at(from, at)) | u32::from(u16_at(from, at + 2)) << 16
}

fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from(u32_at(from, at)) | u64::from(u32_at(from, at + 4)) << 32
}

/// As much as there is.
fn read_some(file: &File, to: &mut [u8], from: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < to.len() {
        match file.read_at(&mut to[read..], from.saturating_add(read as u64)) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn bz_image() -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image
    }

    fn kind(bytes: &[u8]) -> Option<KernelKind> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        check_kernel(file.path()).ok()
    }

    #[test]
    fn kernels_are_told_from_what_is_none() {
        assert_eq!(kind(&bz_image()), Some(KernelKind::BzImage));
        let pvh = rhizome_guest::pvh("hello", rhizome_guest::PvhEnd::Halt);
        assert_eq!(kind(&pvh), Some(KernelKind::PvhElf));
        let unnoted: Vec<u8> = String::from_utf8_lossy(&pvh).replace("Xen\0", "Zen\0").into_bytes();
        for bad in [&b""[..], b"\x7fELF", b"hello", &[0; 4096], &pvh[..100], &unnoted] {
            assert_eq!(kind(bad), None);
        }
        assert_eq!(kind(&std::fs::read("/proc/self/exe").unwrap()), None, "no PVH entry");
        assert_eq!(check_kernel(Path::new("/nowhere")).unwrap_err().code(), Code::ImageNotFound);
        assert_eq!(check_kernel(Path::new("/")).unwrap_err().code(), Code::ImageCorrupt);
    }

    #[test]
    fn archives_are_told_from_what_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let is_one = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            check_initramfs(file.path()).is_ok()
        };
        assert!(is_one(b"070701000000"));
        assert!(is_one(&[0x1f, 0x8b, 8]));
        assert!(is_one(&[0x28, 0xb5, 0x2f, 0xfd, 0]));
        assert!(!is_one(b""));
        assert!(!is_one(b"0707"));
        assert!(!is_one(b"#!/bin/sh"));
        assert!(!is_one(b"070707 old"));
    }

    proptest! {
        #[test]
        fn no_rubbish_breaks_the_reader(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..700),
            elf in any::<bool>(),
        ) {
            if elf && bytes.len() > 64 {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
                bytes[18] = 62;
                bytes[19] = 0;
            }
            kind(&bytes);
            has_pvh_entry(&bytes);
        }
    }
}
