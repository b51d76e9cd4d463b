//! The parser against a stub that is built here byte by byte, and against every alteration of it.

#![allow(clippy::print_stderr)]

use proptest::prelude::*;

use super::*;

/// As little of a bzImage as is looked at.
pub const KERNEL: [u8; 0x300] = {
    let mut kernel = [0; 0x300];
    kernel[0] = b'M';
    kernel[1] = b'Z';
    kernel[0x1fe] = 0x55;
    kernel[0x1ff] = 0xaa;
    kernel[0x202] = b'H';
    kernel[0x203] = b'd';
    kernel[0x204] = b'r';
    kernel[0x205] = b'S';
    kernel[0x206] = 0x0f;
    kernel[0x207] = 0x02;
    kernel[0x236] = 0x7f;
    kernel
};

const PE_AT: usize = 0x80;
const OPTIONAL: usize = PE_AT + 24;
const TABLE: usize = OPTIONAL + OPTIONAL_BYTES + 128;

/// A stub of the form of Debian's: two sections that share a unit of alignment, and symbols.
pub fn stub() -> Vec<u8> {
    let mut b = vec![0; 0x400];
    b[..2].copy_from_slice(b"MZ");
    put(&mut b, 0x3c, PE_AT as u32);
    b[PE_AT..PE_AT + 4].copy_from_slice(b"PE\0\0");
    put(&mut b, PE_AT + 4, 0x0002_8664);
    put(&mut b, PE_AT + 12, 0x800);
    put(&mut b, PE_AT + 16, 1);
    put(&mut b, PE_AT + 20, 0x0206_00f0);
    put(&mut b, OPTIONAL, 0x20b);
    put(&mut b, OPTIONAL + INITIALIZED_DATA, 0x200);
    put(&mut b, OPTIONAL + 16, 0x4000);
    put(&mut b, OPTIONAL + 32, 0x200);
    put(&mut b, OPTIONAL + 36, 0x200);
    put(&mut b, OPTIONAL + SIZE_OF_IMAGE, 0x4300);
    put(&mut b, OPTIONAL + 60, 0x400);
    put(&mut b, OPTIONAL + 68, 10);
    put(&mut b, OPTIONAL + 108, 16);
    for (n, (name, size, address, raw)) in
        [(".text", 0xe2, 0x4000, 0x400), (".sdmagic", 0x34, 0x4100, 0x600)].into_iter().enumerate()
    {
        let at = TABLE + n * SECTION_BYTES;
        b[at..at + name.len()].copy_from_slice(name.as_bytes());
        for (field, value) in [(8, size), (12, address), (16, 0x200), (20, raw)] {
            put(&mut b, at + field, value);
        }
    }
    b.resize(0x600, 0x90);
    b.extend_from_slice(b"#### LoaderInfo: systemd-stub 0 ####");
    b.resize(0x800, 0);
    b.extend_from_slice(b"symbols");
    b
}

fn refusal(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bytes = stub();
    change(&mut bytes);
    Pe::parse(&bytes).map(|pe| pe.sections).unwrap_err()
}

#[test]
fn sections_are_appended_behind_the_last() {
    let stub = stub();
    let pe = Pe::parse(&stub).unwrap();
    let big = vec![7; 5000];
    let out = pe.append(&[(".one", b"1"), (".two", &big), (".three", b"333")]).unwrap();
    let new = Pe::parse(&out).unwrap();
    assert_eq!(new.sections[..2], pe.sections);
    assert_eq!(new.section(".two").unwrap(), big);
    let addresses: Vec<_> = new.sections[2..].iter().map(|s| s.address).collect();
    assert_eq!(addresses, [0x5000, 0x6000, 0x8000]);
    let raws: Vec<_> = new.sections[2..].iter().map(|s| (s.raw, s.raw_size, s.size)).collect();
    assert_eq!(raws, [(0x800, 0x200, 1), (0xa00, 0x1400, 5000), (0x1e00, 0x200, 3)]);
    assert_eq!(new.image, 0x8200);
    assert_eq!(out.len(), 0x2000, "the symbols are gone");
    assert_eq!(u32_at(&out, PE_AT + 12), Ok(0));
    assert_eq!(u32_at(&out, OPTIONAL + INITIALIZED_DATA), Ok(0x200 + 0x200 + 0x1400 + 0x200));
    assert_eq!(out[0x400..0x800], stub[0x400..0x800]);
}

#[test]
fn headers_that_disagree_are_refused() {
    let field = |at: usize, value: u32| refusal(|b| put(b, at, value));
    assert!(field(0x3c, u32::MAX).contains("it ends at"));
    assert!(field(PE_AT, 0).contains("no PE header"));
    assert!(field(PE_AT + 4, 0x0002_aa64).contains("machine"));
    assert!(field(PE_AT + 4, 0x8664).contains("0 sections"));
    assert!(field(PE_AT + 4, 0xffff_8664).contains("65535 sections"));
    assert!(field(PE_AT + 20, 0x0206_00e0).contains("optional header"));
    assert!(field(OPTIONAL, 0x10b).contains("format"));
    assert!(field(OPTIONAL + 68, 3).contains("subsystem"));
    assert!(field(OPTIONAL + 108, 17).contains("directories"));
    assert!(field(OPTIONAL + 36, 0).contains("file alignment"));
    assert!(field(OPTIONAL + 36, 0x300).contains("file alignment"));
    assert!(field(OPTIONAL + 32, 0x100).contains("section alignment"));
    assert!(field(OPTIONAL + 60, 0).contains("headers' size"));
    assert!(field(OPTIONAL + 60, 0x10000).contains("headers' size"));
    assert!(field(OPTIONAL + 60, 0x3ff).contains("headers' size"));
    assert!(field(OPTIONAL + 60, 0x600).contains("overlap"));
    assert!(field(OPTIONAL + SIZE_OF_IMAGE, 0x4100).contains(".sdmagic is not inside the image"));
    assert!(field(OPTIONAL + 16, 0x5000).contains("entry point"));
    assert!(field(TABLE + 12, 0x200).contains("overlap"));
    assert!(field(TABLE + 12, u32::MAX).contains("inside the image"));
    assert!(field(TABLE + 16, u32::MAX).contains("inside the file"));
    assert!(field(TABLE + 20, 0x401).contains("inside the file"));
    assert!(field(TABLE + 20, 0x600).contains("overlap"));
    assert!(field(TABLE + SECTION_BYTES + 12, 0x4000).contains("overlap"));
    assert!(field(OPTIONAL + OPTIONAL_BYTES + 8 * 5 + 4, u32::MAX).contains("directory 5"));
    assert!(field(OPTIONAL + OPTIONAL_BYTES + 8 * 4 + 4, 8).contains("signed"));
    assert!(refusal(|b| b[TABLE] = b'/').contains("symbols"));
}

/// What the linker of the real stub computed is what we compute.
#[test]
fn the_checksum_is_the_linkers() {
    let Ok(stub) = std::fs::read(crate::STUB) else {
        eprintln!("SKIPPED: {} is missing: install {}", crate::STUB, crate::STUB_PACKAGE);
        return;
    };
    let at = Pe::parse(&stub).unwrap().optional + CHECKSUM;
    let theirs = u32_at(&stub, at).unwrap();
    let mut zeroed = stub;
    put(&mut zeroed, at, 0);
    assert_eq!(checksum(&zeroed), theirs);
    assert_eq!(checksum(&[0xff; 0x2_0001]), 0xff + 0x2_0001);
}

#[test]
fn a_full_table_takes_no_more() {
    let mut bytes = stub();
    bytes[TABLE + 2 * SECTION_BYTES] = 1;
    let refused = Pe::parse(&bytes).unwrap().append(&[(".x", b"x")]).unwrap_err();
    assert!(refused.contains("no room"), "{refused}");
    let content: &[u8] = b"x";
    let refused = Pe::parse(&stub()).unwrap().append(&[(".x", content); 60]).unwrap_err();
    assert!(refused.contains("no room"), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn altered_stubs_never_panic_and_never_make_rubbish(
        edits in proptest::collection::vec((0..0x400usize, any::<u8>()), 0..6),
        length in 0..0x900usize,
        cut in any::<bool>(),
    ) {
        let mut bytes = stub();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(length);
        }
        if let Ok(pe) = Pe::parse(&bytes) && let Ok(out) = pe.append(&[(".x", b"content")]) {
            let again = Pe::parse(&out);
            prop_assert!(again.is_ok(), "{again:?}");
            prop_assert_eq!(again.unwrap().section(".x"), Some(&b"content"[..]));
        }
    }

    #[test]
    fn rubbish_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..0x500)) {
        let mut bytes = bytes;
        let _ = Pe::parse(&bytes);
        if bytes.len() >= 2 {
            bytes[..2].copy_from_slice(b"MZ");
            prop_assert!(Pe::parse(&bytes).is_err());
        }
    }
}
