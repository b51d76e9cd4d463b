//! Portable Executable files: reading the headers of one, and appending sections to it.
//!
//! ```text
//!  0        MZ … offset of "PE" at 0x3c
//!  PE       "PE\0\0", COFF header (20), optional header (112 + 8 per directory)
//!  table    40 bytes per section ── room for ours ──▶ up to SizeOfHeaders
//!  raw      the sections' bytes, each at a multiple of FileAlignment
//!  …        symbols, if any: they are left out, no firmware reads them
//! ```
//!
//! Invariant: a [`Pe`] exists only of headers that agree with each other and with the file; what
//! [`Pe::append`] gives is such a file again.
//!
//! Debian's stub (systemd 252) has sections that do not begin at a multiple of SectionAlignment, and
//! firmware loads them; so this is not asked of sections that are there, only kept for new ones.

use crate::EfiError;

const MACHINE_X86_64: u16 = 0x8664;
const PE32_PLUS: u16 = 0x20b;
const SUBSYSTEM_EFI_APPLICATION: u16 = 10;
const EXECUTABLE_LOCAL_SYMBOLS_STRIPPED: u16 = 0x8;
/// Initialised data that is read only.
const READ_ONLY_DATA: u32 = 0x4000_0040;
const COFF_BYTES: usize = 20;
const OPTIONAL_BYTES: usize = 112;
const SECTION_BYTES: usize = 40;
const MAX_DIRECTORIES: u32 = 16;
const SECURITY_DIRECTORY: u32 = 4;
/// The limit of Windows' loader, and of every other.
const MAX_SECTIONS: usize = 96;
/// Firmware protects memory by pages: a section has its pages for itself.
const PAGE: u64 = 4096;

// Offsets in the optional header.
const INITIALIZED_DATA: usize = 8;
const SIZE_OF_IMAGE: usize = 56;
const CHECKSUM: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Section {
    name: [u8; 8],
    /// Where it is in memory, and how much of it.
    address: u32,
    size: u32,
    /// Where its bytes are in the file.
    raw: u32,
    raw_size: u32,
}

impl Section {
    pub fn name(&self) -> &[u8] {
        let end = self.name.iter().position(|b| *b == 0).unwrap_or(8);
        &self.name[..end]
    }

    fn memory(&self) -> (u64, u64) {
        let size = if self.size == 0 { self.raw_size } else { self.size };
        (self.address.into(), u64::from(self.address) + u64::from(size))
    }

    fn file(&self) -> (u64, u64) {
        (self.raw.into(), u64::from(self.raw) + u64::from(self.raw_size))
    }
}

#[derive(Debug)]
pub(crate) struct Pe<'a> {
    bytes: &'a [u8],
    coff: usize,
    optional: usize,
    table: usize,
    section_alignment: u32,
    file_alignment: u32,
    headers: u32,
    image: u32,
    sections: Vec<Section>,
}

/// Why a file is not an EFI program that can be extended.
type Refused = String;

impl<'a> Pe<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refused> {
        if bytes.get(..2) != Some(b"MZ") {
            return Err("it is no EFI program: it does not begin with MZ".into());
        }
        let at = u32_at(bytes, 0x3c)? as usize;
        if slice(bytes, at, 4)? != b"PE\0\0" {
            return Err(format!("it is no EFI program: no PE header at {at:#x}"));
        }
        let coff = at + 4;
        let optional = coff + COFF_BYTES;
        expect("machine", u16_at(bytes, coff)?, MACHINE_X86_64)?;
        expect("format", u16_at(bytes, optional)?, PE32_PLUS)?;
        expect("subsystem", u16_at(bytes, optional + 68)?, SUBSYSTEM_EFI_APPLICATION)?;
        let directories = u32_at(bytes, optional + 108)?;
        if directories > MAX_DIRECTORIES {
            return Err(format!("it says that it has {directories} directories"));
        }
        let optional_size = OPTIONAL_BYTES + 8 * directories as usize;
        expect(
            "size of the optional header",
            usize::from(u16_at(bytes, coff + 16)?),
            optional_size,
        )?;

        let table = optional + optional_size;
        let count = usize::from(u16_at(bytes, coff + 2)?);
        if count == 0 || count > MAX_SECTIONS {
            return Err(format!("it says that it has {count} sections"));
        }
        let sections = (0..count)
            .map(|n| section(slice(bytes, table + n * SECTION_BYTES, SECTION_BYTES)?))
            .collect::<Result<_, _>>()?;
        let pe = Self {
            bytes,
            coff,
            optional,
            table,
            section_alignment: u32_at(bytes, optional + 32)?,
            file_alignment: u32_at(bytes, optional + 36)?,
            headers: u32_at(bytes, optional + 60)?,
            image: u32_at(bytes, optional + SIZE_OF_IMAGE)?,
            sections,
        };
        pe.check_sizes()?;
        pe.check_sections()?;
        pe.check_directories(directories)?;
        Ok(pe)
    }

    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        let section = self.sections.iter().find(|s| s.name() == name.as_bytes())?;
        let size = if section.size == 0 { section.raw_size } else { section.size };
        let size = size.min(section.raw_size) as usize;
        self.bytes.get(section.raw as usize..)?.get(..size)
    }

    fn check_sizes(&self) -> Result<(), Refused> {
        let (file, memory) = (self.file_alignment, self.section_alignment);
        if !file.is_power_of_two() || !(512..=65536).contains(&file) {
            return Err(format!("its file alignment is {file}"));
        }
        if !memory.is_power_of_two() || memory < file || memory > 1 << 21 {
            return Err(format!("its section alignment is {memory}"));
        }
        let table_end = self.table + self.sections.len() * SECTION_BYTES;
        let headers = self.headers as usize;
        if headers < table_end || headers > self.bytes.len() || !self.headers.is_multiple_of(file) {
            return Err(format!("its headers' size is {headers}"));
        }
        Ok(())
    }

    fn check_sections(&self) -> Result<(), Refused> {
        let length = self.bytes.len() as u64;
        let mut memory = vec![(0, u64::from(self.headers))];
        let mut file = memory.clone();
        for section in &self.sections {
            let name = String::from_utf8_lossy(section.name());
            if section.name().starts_with(b"/") {
                return Err(format!("the name of its section {name} is in its symbols"));
            }
            let (start, end) = section.memory();
            if start == end || end > self.image.into() {
                return Err(format!("its section {name} is not inside the image"));
            }
            memory.push((start, end));
            if section.raw_size > 0 {
                let (start, end) = section.file();
                if end > length || !section.raw.is_multiple_of(self.file_alignment) {
                    return Err(format!("its section {name} is not inside the file"));
                }
                file.push((start, end));
            }
        }
        if overlap(&mut memory) || overlap(&mut file) {
            return Err("its sections overlap".into());
        }
        let entry = u64::from(u32_at(self.bytes, self.optional + 16)?);
        let inside = |s: &Section| (s.memory().0..s.memory().1).contains(&entry);
        if !self.sections.iter().any(inside) {
            return Err(format!("its entry point {entry:#x} is in none of its sections"));
        }
        Ok(())
    }

    fn check_directories(&self, count: u32) -> Result<(), Refused> {
        for n in 0..count {
            let at = self.optional + OPTIONAL_BYTES + 8 * n as usize;
            let (address, size) = (u32_at(self.bytes, at)?, u32_at(self.bytes, at + 4)?);
            if n == SECURITY_DIRECTORY && size > 0 {
                return Err("it is signed, and would not be what was signed: give the unsigned \
                            one, and sign the image"
                    .into());
            }
            if size > 0 && u64::from(address) + u64::from(size) > self.image.into() {
                return Err(format!("its directory {n} is not inside the image"));
            }
        }
        Ok(())
    }

    /// The file with further sections behind those that it has.
    pub fn append(&self, new: &[(&str, &[u8])]) -> Result<Vec<u8>, Refused> {
        let room = self.room(new.len())?;
        let raw_end = self.sections.iter().map(|s| s.file().1).max().unwrap_or_default();
        let raw_end = usize::try_from(raw_end).map_err(|_| too_large())?;
        let mut out = self.bytes[..raw_end.max(self.headers as usize)].to_vec();
        let mut table_at = room;
        let mut end = u64::from(self.image);
        let mut data = u64::from(u32_at(self.bytes, self.optional + INITIALIZED_DATA)?);
        for (name, content) in new {
            pad(&mut out, self.file_alignment)?;
            let address = align(end, PAGE.max(self.section_alignment.into()))?;
            let raw = u32::try_from(out.len()).map_err(|_| too_large())?;
            out.extend_from_slice(content);
            pad(&mut out, self.file_alignment)?;
            let size = u32::try_from(content.len()).map_err(|_| too_large())?;
            let raw_size = u32::try_from(out.len() - raw as usize).map_err(|_| too_large())?;
            let mut header = [0; SECTION_BYTES];
            header[..name.len()].copy_from_slice(name.as_bytes());
            put(&mut header, 8, size);
            put(&mut header, 12, u32::try_from(address).map_err(|_| too_large())?);
            put(&mut header, 16, raw_size);
            put(&mut header, 20, raw);
            put(&mut header, 36, READ_ONLY_DATA);
            out[table_at..table_at + SECTION_BYTES].copy_from_slice(&header);
            table_at += SECTION_BYTES;
            end = address + u64::from(size);
            data += u64::from(raw_size);
        }
        let image = align(end, self.section_alignment.into())?;
        self.write_headers(&mut out, new.len(), image, data)?;
        Ok(out)
    }

    /// Where the table goes on; the bytes there must be free.
    fn room(&self, count: usize) -> Result<usize, Refused> {
        let start = self.table + self.sections.len() * SECTION_BYTES;
        let end = start + count * SECTION_BYTES;
        let fits = end <= self.headers as usize && self.sections.len() + count <= MAX_SECTIONS;
        if !fits || self.bytes[start..end].iter().any(|b| *b != 0) {
            return Err(format!("its headers have no room for {count} more sections"));
        }
        Ok(start)
    }

    fn write_headers(
        &self,
        out: &mut [u8],
        count: usize,
        image: u64,
        data: u64,
    ) -> Result<(), Refused> {
        let sections = u16::try_from(self.sections.len() + count).map_err(|_| too_large())?;
        let flags = u16_at(self.bytes, self.coff + 18)? | EXECUTABLE_LOCAL_SYMBOLS_STRIPPED;
        out[self.coff + 2..self.coff + 4].copy_from_slice(&sections.to_le_bytes());
        out[self.coff + 18..self.coff + 20].copy_from_slice(&flags.to_le_bytes());
        // Pointer to and number of symbols: they were left out.
        put(out, self.coff + 8, 0);
        put(out, self.coff + 12, 0);
        put(out, self.optional + SIZE_OF_IMAGE, u32::try_from(image).map_err(|_| too_large())?);
        put(out, self.optional + INITIALIZED_DATA, u32::try_from(data).map_err(|_| too_large())?);
        put(out, self.optional + CHECKSUM, 0);
        let sum = checksum(out);
        put(out, self.optional + CHECKSUM, sum);
        Ok(())
    }
}

impl Pe<'_> {
    /// What is refused, said of the file.
    pub fn refused(what: &str) -> impl FnOnce(Refused) -> EfiError + '_ {
        move |why| EfiError::unusable(what, why)
    }
}

fn section(header: &[u8]) -> Result<Section, Refused> {
    let mut name = [0; 8];
    name.copy_from_slice(&header[..8]);
    Ok(Section {
        name,
        size: u32_at(header, 8)?,
        address: u32_at(header, 12)?,
        raw_size: u32_at(header, 16)?,
        raw: u32_at(header, 20)?,
    })
}

/// The sum of all 16-bit words with the carry added again, and the length; the field itself is 0.
fn checksum(bytes: &[u8]) -> u32 {
    // Two words at once: the carry of the lower one is added again when the halves are.
    let mut sum = 0u64;
    for four in bytes.chunks(4) {
        let mut words = [0; 4];
        words[..four.len()].copy_from_slice(four);
        sum += u64::from(u32::from_le_bytes(words));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // A file of more than 4 GiB was refused before: the sum cannot be cut.
    (sum as u32).wrapping_add(bytes.len() as u32)
}

fn overlap(ranges: &mut [(u64, u64)]) -> bool {
    ranges.sort_unstable();
    ranges.windows(2).any(|pair| pair[0].1 > pair[1].0)
}

fn align(value: u64, to: u64) -> Result<u64, Refused> {
    value.checked_next_multiple_of(to).filter(|v| *v <= u32::MAX.into()).ok_or_else(too_large)
}

fn pad(out: &mut Vec<u8>, to: u32) -> Result<(), Refused> {
    let length = align(out.len() as u64, to.into())?;
    out.resize(usize::try_from(length).map_err(|_| too_large())?, 0);
    Ok(())
}

fn too_large() -> Refused {
    "with the new sections it has more than 4 GiB".into()
}

fn expect<T: PartialEq + std::fmt::LowerHex>(what: &str, is: T, must: T) -> Result<(), Refused> {
    if is == must {
        return Ok(());
    }
    Err(format!("it is no EFI program for x86-64: its {what} is {is:#x}, not {must:#x}"))
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], Refused> {
    let end = at.checked_add(length);
    end.and_then(|end| bytes.get(at..end))
        .ok_or_else(|| format!("it ends at {:#x}, before what shall be at {at:#x}", bytes.len()))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Refused> {
    let field = slice(bytes, at, 2)?;
    Ok(u16::from_le_bytes([field[0], field[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Refused> {
    let field = slice(bytes, at, 4)?;
    Ok(u32::from_le_bytes([field[0], field[1], field[2], field[3]]))
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
#[path = "pe_tests.rs"]
pub(crate) mod tests;
