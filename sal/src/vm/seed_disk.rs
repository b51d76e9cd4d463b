//! The disk that carries a seed: a FAT file system with the label CIDATA.
//!
//! The `fatfs` crate makes it. It is built without long names, which it writes for "." too, so they
//! are put in afterwards: for each file it makes as many empty files ahead as the name needs entries,
//! and these become the name.

use std::fs::{self, Permissions};
use std::io::{self, Cursor, Write as _};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use fatfs::{
    Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider, format_volume,
};
use rhizome_model::Code;

use super::seed::Seed;
use crate::error::{During, Result, SalError, shown};

const LABEL: [u8; 11] = *b"CIDATA     ";
const VOLUME_ID: u32 = 0x525a_0001;
/// Kernels read their disks in such steps.
const UNIT: usize = 1 << 20;
/// File systems store files in such blocks.
const BLOCK: usize = 4096;
const EMPTY: [u8; BLOCK] = [0; BLOCK];
/// More is not to be told to a guest.
const MAX_CONTENT: usize = 4 << 20;
/// An entry of a folder, and how much of a long name it holds.
const ENTRY: usize = 32;
const LETTERS: usize = 13;
/// The attribute that makes an entry a piece of a long name.
const LONG_NAME: u8 = 0x0f;
/// Of the pieces, the one that is the name's end, and the first on the disk.
const LAST: u8 = 0x40;

/// Writes the disk of a seed, for the owner alone: it holds what the guest is to keep secret.
pub fn write_seed(path: &Path, seed: &Seed) -> Result<()> {
    seed.check()?;
    let files = seed.files();
    let content: usize = files.iter().map(|(_, content)| content.len()).sum();
    if content > MAX_CONTENT {
        let message = format!(
            "a virtual machine is told at most {MAX_CONTENT} bytes at its start, not {content}"
        );
        return Err(SalError::new(Code::TooLarge, message));
    }
    let image = image(&files, (content + UNIT).next_multiple_of(UNIT))
        .during(format_args!("make {}", shown(path)))?;
    place(path, &image).during(format_args!("write {}", shown(path)))
}

/// Nobody else can read it at any moment.
fn place(path: &Path, image: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = fs::File::create_new(&new)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.set_len(image.len() as u64)?;
    // Nearly all of it is empty, and is not stored.
    for (n, block) in image.chunks(BLOCK).enumerate() {
        if !EMPTY.starts_with(block) {
            file.write_all_at(block, (n * BLOCK) as u64)?;
        }
    }
    fs::rename(&new, path)
}

fn image(files: &[(&'static str, String)], bytes: usize) -> io::Result<Vec<u8>> {
    let mut image = vec![0; bytes];
    let format = FormatVolumeOptions::new().volume_id(VOLUME_ID).volume_label(LABEL);
    format_volume(Cursor::new(&mut image), format)?;
    let options = FsOptions::new().time_provider(&FixedTime);
    let disk = FileSystem::new(Cursor::new(&mut image), options)?;
    for (n, (name, content)) in files.iter().enumerate() {
        for piece in 0..pieces(name) {
            disk.root_dir().create_file(&format!("LONG{n}-{piece}"))?;
        }
        let mut file = disk.root_dir().create_file(&short(n))?;
        file.write_all(content.as_bytes())?;
        file.flush()?;
    }
    disk.unmount()?;
    name_files(&mut image, files)?;
    Ok(image)
}

fn pieces(name: &str) -> usize {
    name.len().div_ceil(LETTERS)
}

/// The name that only somebody sees who knows no long names.
fn short(n: usize) -> String {
    format!("SEED~{}", n + 1)
}

/// Makes long names of the empty files that were put before each file.
fn name_files(image: &mut [u8], files: &[(&'static str, String)]) -> io::Result<()> {
    let u16_at = |image: &[u8], at: usize| usize::from(image[at]) | usize::from(image[at + 1]) << 8;
    let (sector, reserved, table) = (u16_at(image, 11), u16_at(image, 14), u16_at(image, 22));
    let (tables, entries) = (usize::from(image[16]), u16_at(image, 17));
    let begin = sector * (reserved + tables * table);
    let root = image
        .get_mut(begin..begin + entries * ENTRY)
        .ok_or_else(|| io::Error::other("a folder that was just made is not there"))?;
    let mut names = files
        .iter()
        .flat_map(|(name, _)| (1..=pieces(name)).rev().map(move |piece| (*name, piece)));
    let shorts = root.chunks(ENTRY).filter(|entry| entry.starts_with(b"SEED~"));
    let sums: Vec<u8> = shorts.map(|entry| checksum(&entry[..11])).collect();
    let mut file = 0;
    for entry in root.chunks_mut(ENTRY) {
        if entry.starts_with(b"SEED~") {
            file += 1;
        } else if entry.starts_with(b"LONG") {
            let (name, piece) = names.next().unwrap_or(("", 1));
            write_piece(entry, name, piece, sums.get(file).copied().unwrap_or(0));
        }
    }
    if names.next().is_none() && file == files.len() {
        return Ok(());
    }
    Err(io::Error::other("files that were just made are not there"))
}

/// One entry's part of a long name, counted from 1.
fn write_piece(entry: &mut [u8], name: &str, piece: usize, checksum: u8) {
    let last = if piece == pieces(name) { LAST } else { 0 };
    entry.fill(0);
    entry[0] = u8::try_from(piece).unwrap_or(u8::MAX) | last;
    entry[11] = LONG_NAME;
    entry[13] = checksum;
    let mut letters = name.encode_utf16().skip((piece - 1) * LETTERS);
    let mut is_over = false;
    for at in (1..11).chain(14..26).chain(28..32).step_by(2) {
        // Behind the end comes one zero, and then what is no letter.
        let letter = letters.next().unwrap_or(if is_over { 0xffff } else { 0 });
        is_over |= letter == 0;
        entry[at..at + 2].copy_from_slice(&letter.to_le_bytes());
    }
}

/// Ties a long name to its short one.
fn checksum(short: &[u8]) -> u8 {
    short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The first moment that FAT can tell: the same seed gives the same bytes.
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::seed::tests::seed;
    use super::*;

    fn run(program: &str, args: &[&str]) -> String {
        let output = Command::new(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn other_peoples_tools_read_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.img");
        write_seed(&path, &seed()).unwrap();
        let image = path.to_str().unwrap();
        let checked = run("/usr/sbin/fsck.fat", &["-n", "-v", image]);
        assert!(checked.contains("4 files") || checked.contains("3 files"), "{checked}");
        assert_eq!(run("/usr/sbin/blkid", &["-o", "value", "-s", "LABEL", image]).trim(), "CIDATA");
        let listed = run("mdir", &["-b", "-i", image, "::"]);
        assert_eq!(
            listed.lines().collect::<Vec<_>>(),
            ["::/meta-data", "::/user-data", "::/network-config"]
        );
        for (name, content) in seed().files() {
            assert_eq!(run("mtype", &["-i", image, &format!("::{name}")]), content, "{name}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_for_the_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        write_seed(&one, &seed()).unwrap();
        fs::write(&two, "before").unwrap();
        write_seed(&two, &seed()).unwrap();
        assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap());
        assert_eq!(two.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let mut other = seed();
        other.hostname.push('2');
        write_seed(&two, &other).unwrap();
        assert!(fs::read(&one).unwrap() != fs::read(&two).unwrap());
    }

    #[test]
    fn much_is_carried_and_too_much_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.img");
        let mut seed = seed();
        seed.env.insert("MUCH".into(), "x".repeat(1 << 20));
        write_seed(&path, &seed).unwrap();
        run("/usr/sbin/fsck.fat", &["-n", path.to_str().unwrap()]);
        seed.env.insert("MORE".into(), "x".repeat(2 << 20));
        assert_eq!(write_seed(&path, &seed).unwrap_err().code(), Code::TooLarge);
    }
}
