//! The smallest guest: an ELF program with a PVH entry.

/// Where it is loaded and runs.
const BASE: u32 = 0x10_0000;
const ELF_HEADER: usize = 64;
const SEGMENT: usize = 56;
/// The note's place in the file, behind the table of segments.
const NOTE_AT: usize = ELF_HEADER + 2 * SEGMENT;
const NOTE: usize = 12 + 4 + 4;
const CODE_AT: usize = NOTE_AT + NOTE;
/// Of the note: a 32-bit entry for para-virtualised machines.
const PHYS32_ENTRY: u32 = 18;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const SERIAL: u16 = 0x3f8;

/// What it does after it has printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PvhEnd {
    /// It powers off.
    PowerOff,
    /// It halts for ever, whoever presses the power button.
    Halt,
    /// It says that it panics, to QEMU's device for that; elsewhere it halts.
    Panic,
    /// It resets the machine, as a kernel does after a panic.
    Reset,
}

/// A kernel that prints a line and then does what `end` says.
pub fn pvh(text: &str, end: PvhEnd) -> Vec<u8> {
    let text = format!("{text}\n").into_bytes();
    let length = |code: &[u8]| u32::try_from(code.len()).expect("a guest is small");
    // The text's place depends on the length of the code, which is the same for every place.
    let text_at = BASE + length(&[0; CODE_AT]) + length(&code(0, 0, end));
    let mut program = code(text_at, length(&text), end);
    program.extend(text);

    let mut file = header();
    let bytes = (CODE_AT + program.len()) as u64;
    file.extend(segment(PT_LOAD, 0, bytes));
    file.extend(segment(PT_NOTE, NOTE_AT as u64, NOTE as u64));
    for word in [4, 4, PHYS32_ENTRY] {
        file.extend(word.to_le_bytes());
    }
    file.extend(b"Xen\0");
    file.extend((BASE + CODE_AT as u32).to_le_bytes());
    file.extend(program);
    file
}

/// Machine code for 32 bits, as a PVH guest is entered.
fn code(text_at: u32, length: u32, end: PvhEnd) -> Vec<u8> {
    let mut code = vec![0xfa, 0xfc]; // cli; cld
    code.push(0xbe); // mov esi, text
    code.extend(text_at.to_le_bytes());
    code.push(0xb9); // mov ecx, length
    code.extend(length.to_le_bytes());
    code.extend([0x66, 0xba]); // mov dx, serial
    code.extend(SERIAL.to_le_bytes());
    code.extend([0xac, 0xee, 0xe2, 0xfc]); // lodsb; out dx, al; loop
    match end {
        PvhEnd::PowerOff => {
            // Cloud Hypervisor's port for S5: mov dx, 0x600; mov al, 0x34; out dx, al
            code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
            // The same of QEMU's q35: mov dx, 0x604; mov ax, 0x2000; out dx, ax
            code.extend([0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef]);
        }
        // The keyboard controller's reset line: mov al, 0xfe; out 0x64, al
        PvhEnd::Reset => code.extend([0xb0, 0xfe, 0xe6, 0x64]),
        // mov dx, 0x505; mov al, 1; out dx, al
        PvhEnd::Panic => code.extend([0x66, 0xba, 0x05, 0x05, 0xb0, 0x01, 0xee]),
        PvhEnd::Halt => {}
    }
    code.extend([0xf4, 0xeb, 0xfd]); // hlt, again and again
    code
}

fn header() -> Vec<u8> {
    let mut header = Vec::with_capacity(ELF_HEADER);
    header.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    header.extend(2u16.to_le_bytes()); // a program
    header.extend(62u16.to_le_bytes()); // x86-64
    header.extend(1u32.to_le_bytes());
    header.extend(u64::from(BASE + CODE_AT as u32).to_le_bytes());
    header.extend((ELF_HEADER as u64).to_le_bytes()); // the table of segments
    header.extend(0u64.to_le_bytes());
    header.extend(0u32.to_le_bytes());
    for half in [ELF_HEADER as u16, SEGMENT as u16, 2, 64, 0, 0] {
        header.extend(half.to_le_bytes());
    }
    header
}

fn segment(kind: u32, offset: u64, bytes: u64) -> Vec<u8> {
    let mut segment = Vec::with_capacity(SEGMENT);
    segment.extend(kind.to_le_bytes());
    segment.extend(7u32.to_le_bytes()); // read, write, run
    let at = u64::from(BASE) + offset;
    for word in [offset, at, at, bytes, bytes, 4] {
        segment.extend(word.to_le_bytes());
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_is_where_the_code_begins_and_the_text_behind_it() {
        let file = pvh("hello", PvhEnd::Halt);
        assert_eq!(header().len(), ELF_HEADER);
        assert_eq!(segment(PT_LOAD, 0, 0).len(), SEGMENT);
        assert_eq!(&file[CODE_AT..CODE_AT + 3], [0xfa, 0xfc, 0xbe]);
        let at = u32::from_le_bytes(file[CODE_AT + 3..CODE_AT + 7].try_into().unwrap()) - BASE;
        assert_eq!(&file[at as usize..], b"hello\n");
        assert_eq!(&file[NOTE_AT + 12..NOTE_AT + 16], b"Xen\0");
    }
}
