//! The disk image: a GPT with one EFI system partition, which holds the program that firmware starts.
//!
//! ```text
//!  0        protective MBR, GPT header, table of partitions
//!  1 MiB    ESP: FAT32, /EFI/BOOT/BOOTX64.EFI
//!  end-1MiB copy of the table and of the header, at the very end
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use fatfs::{
    Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider,
};
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use uuid::Uuid;

use crate::place::{Written, place};
use crate::{EfiError, MAX_BYTES};

const SECTOR: u64 = 512;
/// What partitions are aligned to, and the room for the table at both ends.
const UNIT: u64 = 1 << 20;
/// FAT32 has at least 65525 clusters; with less than this, firmware would take it for FAT16.
const MIN_ESP: u64 = 64 * UNIT;
const LABEL: [u8; 11] = *b"RHIZOME ESP";
/// The attribute of a folder.
const FOLDER: u8 = 0x10;
/// Where firmware looks on a disk that nobody told it about.
const FOLDERS: [&str; 2] = ["EFI", "EFI/BOOT"];
const PROGRAM: &str = "EFI/BOOT/BOOTX64.EFI";

/// Writes a disk image that boots `uki`. `dd` it to a disk, or give it to a virtual machine.
pub fn write_disk(uki: &[u8], out: &Path) -> Result<Written, EfiError> {
    check_size(uki)?;
    let ids = Ids::of(uki);
    let esp = esp_bytes(uki.len() as u64);
    place(out, |file| {
        let total = UNIT + esp + UNIT;
        file.set_len(total).map_err(EfiError::writing("the disk image"))?;
        write_table(file, total, esp, &ids)
            .map_err(EfiError::writing("the partition table of the disk image"))?;
        let window = Window { file, start: UNIT, bytes: esp, at: 0 };
        write_esp(window, uki, &ids)
            .map_err(EfiError::writing("the EFI system partition of the disk image"))
    })
}

/// Writes the EFI program alone: for network boot, or an ESP that is there already.
pub fn write_uki(uki: &[u8], out: &Path) -> Result<Written, EfiError> {
    check_size(uki)?;
    place(out, |mut file| file.write_all(uki).map_err(EfiError::writing("the EFI program")))
}

fn check_size(uki: &[u8]) -> Result<(), EfiError> {
    let bytes = uki.len() as u64;
    if bytes > MAX_BYTES {
        return Err(EfiError::TooLarge { what: "the image".into(), bytes, limit: MAX_BYTES });
    }
    Ok(())
}

/// The program, the two tables of FAT (8 bytes per cluster of at least 512), folders, and air.
fn esp_bytes(uki: u64) -> u64 {
    (uki + uki / 32 + 2 * UNIT).next_multiple_of(UNIT).max(MIN_ESP)
}

/// Identifiers that differ when the content does, and are the same when it is.
struct Ids {
    disk: Uuid,
    partition: Uuid,
    volume: u32,
}

impl Ids {
    fn of(uki: &[u8]) -> Self {
        let hash =
            |context| *blake3::Hasher::new_derive_key(context).update(uki).finalize().as_bytes();
        let uuid = |context| {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&hash(context)[..16]);
            uuid::Builder::from_custom_bytes(bytes).into_uuid()
        };
        let volume = hash("rhizome-efi v1 volume id of the ESP");
        Self {
            disk: uuid("rhizome-efi v1 guid of the disk"),
            partition: uuid("rhizome-efi v1 guid of the ESP"),
            volume: u32::from_le_bytes([volume[0], volume[1], volume[2], volume[3]]),
        }
    }
}

fn write_table(file: &File, total: u64, esp: u64, ids: &Ids) -> io::Result<()> {
    let mut device = file.try_clone()?;
    let sectors = u32::try_from(total / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut device).map_err(io::Error::other)?;
    let mut disk = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(device, Some(ids.disk))
        .map_err(io::Error::other)?;
    let partition = Partition {
        part_type_guid: gpt::partition_types::EFI,
        part_guid: ids.partition,
        first_lba: UNIT / SECTOR,
        last_lba: (UNIT + esp) / SECTOR - 1,
        flags: 0,
        name: "EFI system partition".into(),
    };
    disk.update_partitions(BTreeMap::from([(1, partition)])).map_err(io::Error::other)?;
    disk.write().map_err(io::Error::other)?;
    Ok(())
}

fn write_esp(mut window: Window<'_>, uki: &[u8], ids: &Ids) -> io::Result<()> {
    let format = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .volume_id(ids.volume)
        .volume_label(LABEL);
    fatfs::format_volume(&mut window, format)?;
    window.rewind()?;
    let esp = FileSystem::new(&mut window, FsOptions::new().time_provider(&FixedTime))?;
    for folder in FOLDERS {
        esp.root_dir().create_dir(folder)?;
    }
    let mut program = esp.root_dir().create_file(PROGRAM)?;
    program.write_all(uki)?;
    program.flush()?;
    drop(program);
    // Counts the free clusters: the summary is written with what was counted.
    esp.stats()?;
    esp.unmount()?;
    point_to_the_root(&mut window)
}

/// FAT32 calls the root folder 0 in the ".." of a folder inside it; fatfs 0.3 writes its number, which
/// fsck refuses.
fn point_to_the_root(window: &mut Window<'_>) -> io::Result<()> {
    const ENTRY: usize = 32;
    const PARENT: &[u8; 11] = b"..         ";
    let mut boot = [0; SECTOR as usize];
    window.rewind()?;
    window.read_exact(&mut boot)?;
    let u16_at = |from: &[u8], at: usize| u64::from(u16::from_le_bytes([from[at], from[at + 1]]));
    let u32_at = |from: &[u8], at: usize| u16_at(from, at) | u16_at(from, at + 2) << 16;
    let (reserved, tables, table) = (u16_at(&boot, 14), u64::from(boot[16]), u32_at(&boot, 36));
    let (first, cluster, root) =
        (reserved + tables * table, u64::from(boot[13]), u32_at(&boot, 44));
    let place = |number: u64| SECTOR * (first + number.saturating_sub(2) * cluster);

    let mut entries = [0; SECTOR as usize];
    window.seek(SeekFrom::Start(place(root)))?;
    window.read_exact(&mut entries)?;
    for entry in entries.chunks(ENTRY).filter(|e| e[11] & FOLDER != 0) {
        let at = place(u16_at(entry, 26) | u16_at(entry, 20) << 16) + ENTRY as u64;
        let mut parent = [0; ENTRY];
        window.seek(SeekFrom::Start(at))?;
        window.read_exact(&mut parent)?;
        if &parent[..11] != PARENT {
            return Err(io::Error::other("a folder that was just made has no \"..\""));
        }
        parent[20..22].fill(0);
        parent[26..28].fill(0);
        window.seek(SeekFrom::Start(at))?;
        window.write_all(&parent)?;
    }
    Ok(())
}

/// The first moment that FAT can tell: an image says nothing of when it was built.
#[derive(Debug)]
struct FixedTime;

impl TimeProvider for FixedTime {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        let time = Time { hour: 0, min: 0, sec: 0, millis: 0 };
        DateTime { date: self.get_current_date(), time }
    }
}

/// The part of the file that is the partition.
struct Window<'a> {
    file: &'a File,
    start: u64,
    bytes: u64,
    at: u64,
}

impl Window<'_> {
    /// How much of `wanted` is left before the end.
    fn left(&self, wanted: usize) -> usize {
        let left = self.bytes.saturating_sub(self.at);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
    }
}

impl Read for Window<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = self.left(to.len());
        let count = self.file.read_at(&mut to[..left], self.start + self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let count = self.file.write_at(&from[..self.left(from.len())], self.start + self.at)?;
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
        };
        self.at = at.filter(|at| *at <= self.bytes).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a place outside the partition")
        })?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(uki: &[u8]) -> (Written, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("disk.img");
        let written = write_disk(uki, &out).unwrap();
        (written, std::fs::read(out).unwrap())
    }

    #[test]
    fn the_same_program_gives_the_same_disk() {
        let (first, bytes) = image(b"program");
        let (second, again) = image(b"program");
        assert!(bytes == again && first == second);
        assert_eq!(first.bytes, bytes.len() as u64);
        assert_eq!(first.blake3, blake3::hash(&bytes).to_hex().to_string());
        assert_ne!(image(b"another").0, first);
    }

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("disk.img");
        let program: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
        write_disk(&program, &out).unwrap();

        let disk = GptConfig::new().only_valid_headers(true).open(&out).unwrap();
        let esp = &disk.partitions()[&1];
        assert_eq!(esp.part_type_guid, gpt::partition_types::EFI);
        let (start, length) = (esp.first_lba * SECTOR, esp.sectors_len().unwrap() * SECTOR);
        assert_eq!((start, length), (UNIT, MIN_ESP));
        let file = File::open(&out).unwrap();
        let mut window = Window { file: &file, start, bytes: length, at: 0 };
        let esp = FileSystem::new(&mut window, FsOptions::new()).unwrap();
        assert_eq!(esp.fat_type(), FatType::Fat32);
        let mut read = Vec::new();
        esp.root_dir().open_file(PROGRAM).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == program);
    }

    #[test]
    fn every_program_fits_its_partition() {
        // The least clusters that FAT32 may have, and the most bytes that its tables take.
        for uki in [1, MIN_ESP - 3 * UNIT, MIN_ESP, 250 * UNIT, 260 * UNIT, 512 * UNIT, MAX_BYTES] {
            let esp = esp_bytes(uki);
            let cluster = if esp <= 260 * UNIT { 512 } else { 4096 };
            let tables = 2 * 4 * (esp / cluster + 2) + 64 * SECTOR;
            assert!(uki + tables + 8 * cluster <= esp, "{uki}");
            assert!((esp - tables) / cluster >= 65525, "{uki}");
        }
    }

    #[test]
    fn the_window_ends_where_the_partition_does() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(30).unwrap();
        let mut window = Window { file: &file, start: 10, bytes: 10, at: 8 };
        assert_eq!(window.write(b"abcd").unwrap(), 2);
        assert_eq!(window.read(&mut [0; 4]).unwrap(), 0);
        assert!(window.seek(SeekFrom::Current(1)).is_err());
        assert!(window.seek(SeekFrom::End(-11)).is_err());
        assert_eq!(window.seek(SeekFrom::End(-2)).unwrap(), 8);
    }
}
