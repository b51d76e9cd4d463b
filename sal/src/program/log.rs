//! What a program prints, kept on disk.
//!
//! The format is that of Kubernetes' container runtimes (CRI): `TIME STREAM TAG TEXT`, with the
//! time in RFC 3339, the stream `stdout` or `stderr`, and the tag `F` for a whole line or `P` for
//! a part of one, which the next entry of the stream goes on with. A log that reaches its size
//! becomes `….log.1`, in place of the one before.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Chunk;
use crate::error::{During, Result, shown};
use crate::files;

/// Two files of this size are kept of a program.
pub(super) const MAX_SIZE: u64 = 8 << 20;
/// A longer line is kept in parts.
const MAX_LINE: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

pub(super) fn rotated(path: &Path) -> PathBuf {
    files::with_suffix(path, ".1")
}

/// Writes the log. What stands behind the last line end waits for the rest of its line.
pub(super) struct Writer {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    waiting: [Vec<u8>; 2],
}

impl Writer {
    pub fn open(path: &Path, max_size: u64) -> Result<Self> {
        let (file, size) = Self::append(path)?;
        Ok(Self { path: path.to_owned(), file, size, max_size, waiting: Default::default() })
    }

    fn append(path: &Path) -> Result<(File, u64)> {
        let open = || -> std::io::Result<(File, u64)> {
            let file = File::options().create(true).append(true).open(path)?;
            let size = file.metadata()?.len();
            Ok((file, size))
        };
        open().during(format_args!("open the log {}", shown(path)))
    }

    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.waiting[stream as usize]);
        waiting.extend_from_slice(bytes);
        let mut rest = &waiting[..];
        let mut entries = Vec::with_capacity(bytes.len() * 2);
        let now = jiff::Timestamp::now();
        loop {
            let line = rest.iter().position(|b| *b == b'\n');
            match line {
                Some(end) if end <= MAX_LINE => {
                    entry(&mut entries, now, stream, b'F', &rest[..end]);
                    rest = &rest[end + 1..];
                }
                _ if rest.len() > MAX_LINE => {
                    entry(&mut entries, now, stream, b'P', &rest[..MAX_LINE]);
                    rest = &rest[MAX_LINE..];
                }
                _ => break,
            }
        }
        self.waiting[stream as usize] = rest.to_vec();
        self.put(&entries)
    }

    pub fn is_waiting(&self) -> bool {
        self.waiting.iter().any(|w| !w.is_empty())
    }

    /// Writes unfinished lines too: nothing more may come.
    pub fn flush(&mut self) -> Result<()> {
        let mut entries = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let text = std::mem::take(&mut self.waiting[stream as usize]);
            if !text.is_empty() {
                entry(&mut entries, jiff::Timestamp::now(), stream, b'P', &text);
            }
        }
        self.put(&entries)
    }

    fn put(&mut self, entries: &[u8]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        if self.size > 0 && self.size + entries.len() as u64 > self.max_size {
            fs::rename(&self.path, rotated(&self.path))
                .during(format_args!("rotate the log {}", shown(&self.path)))?;
            (self.file, self.size) = Self::append(&self.path)?;
        }
        self.file.write_all(entries).during(format_args!("write the log {}", shown(&self.path)))?;
        self.size += entries.len() as u64;
        Ok(())
    }
}

fn entry(into: &mut Vec<u8>, time: jiff::Timestamp, stream: Stream, tag: u8, text: &[u8]) {
    // Writing to memory cannot fail.
    let _ = write!(into, "{time:.9} {} {} ", stream.as_str(), char::from(tag));
    into.extend_from_slice(text);
    into.push(b'\n');
}

/// What an entry says, as it was printed.
fn parse(line: &[u8]) -> Option<Chunk> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (_, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let mut text = text.to_vec();
    match tag {
        b"F" => text.push(b'\n'),
        b"P" => {}
        _ => return None,
    }
    match stream {
        b"stdout" => Some(Chunk::Stdout(text)),
        b"stderr" => Some(Chunk::Stderr(text)),
        _ => None,
    }
}

/// Reads the log from some place on, and goes on where it ended, also when it was rotated.
pub(super) struct Reader {
    path: PathBuf,
    file: Option<BufReader<File>>,
    partial: Vec<u8>,
}

impl Reader {
    /// The last `tail` entries of both files, and a reader that goes on behind them.
    pub fn tail(path: &Path, tail: usize) -> Result<(Vec<Chunk>, Self)> {
        let mut reader = Self { path: path.to_owned(), file: None, partial: Vec::new() };
        let mut chunks = std::collections::VecDeque::new();
        let mut keep = |chunk| {
            chunks.push_back(chunk);
            if chunks.len() > tail {
                chunks.pop_front();
            }
        };
        reader.open(&rotated(path));
        reader.read(&mut keep)?;
        reader.partial.clear();
        reader.open(path);
        reader.read(&mut keep)?;
        Ok((chunks.into(), reader))
    }

    /// What came since; `None` when the log is gone.
    pub fn more(&mut self) -> Result<Option<Vec<Chunk>>> {
        let mut chunks = Vec::new();
        self.read(&mut |chunk| chunks.push(chunk))?;
        let inode = |m: std::io::Result<fs::Metadata>| m.ok().map(|m| m.ino());
        let mine = self.file.as_ref().and_then(|f| inode(f.get_ref().metadata()));
        let named = inode(fs::metadata(&self.path));
        if mine != named {
            // Once more: something may have come just before the rotation.
            self.read(&mut |chunk| chunks.push(chunk))?;
            self.partial.clear();
            self.open(&self.path.clone());
            self.read(&mut |chunk| chunks.push(chunk))?;
        }
        Ok((named.is_some() || !chunks.is_empty()).then_some(chunks))
    }

    fn open(&mut self, path: &Path) {
        self.file = File::open(path).ok().map(BufReader::new);
    }

    fn read(&mut self, each: &mut dyn FnMut(Chunk)) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        loop {
            let n = file
                .read_until(b'\n', &mut self.partial)
                .during(format_args!("read the log {}", shown(&self.path)))?;
            if n == 0 {
                return Ok(());
            }
            if self.partial.ends_with(b"\n") {
                self.partial.pop();
                if let Some(chunk) = parse(&self.partial) {
                    each(chunk);
                }
                self.partial.clear();
            }
        }
    }
}

/// The last `max` bytes that were printed on standard output.
pub(super) fn last_output(path: &Path, max: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for file in [rotated(path), path.to_owned()] {
        let Ok(mut file) = File::open(&file) else { continue };
        // Entries are longer than their text, but not longer than this.
        let back = (max as u64).saturating_mul(64).min(MAX_SIZE);
        let size = file.metadata().map(|m| m.len()).unwrap_or(0);
        let cut = size > back;
        file.seek(SeekFrom::Start(size.saturating_sub(back)))
            .during(format_args!("read the log {}", shown(path)))?;
        for line in BufReader::new(file).split(b'\n').skip(usize::from(cut)) {
            let line = line.during(format_args!("read the log {}", shown(path)))?;
            if let Some(Chunk::Stdout(text)) = parse(&line) {
                bytes.extend_from_slice(&text);
            }
        }
    }
    Ok(bytes.split_off(bytes.len().saturating_sub(max)))
}

/// The last lines, of both streams, as one text.
pub(super) fn last_lines(path: &Path, n: usize) -> Result<String> {
    let (chunks, _) = Reader::tail(path, n)?;
    let bytes: Vec<u8> = chunks
        .into_iter()
        .flat_map(|chunk| match chunk {
            Chunk::Stdout(bytes) | Chunk::Stderr(bytes) => bytes,
        })
        .collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(chunks: &[Chunk]) -> String {
        let bytes: Vec<_> = chunks
            .iter()
            .flat_map(|c| match c {
                Chunk::Stdout(b) | Chunk::Stderr(b) => b.clone(),
            })
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_is_printed_is_read_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut writer = Writer::open(&path, MAX_SIZE).unwrap();
        let long = "x".repeat(MAX_LINE * 2 + 5);
        for part in ["a\nb", "c\n", &long, "\n", "no end"] {
            writer.write(Stream::Stdout, part.as_bytes()).unwrap();
        }
        writer.write(Stream::Stderr, b"oh\n").unwrap();
        writer.flush().unwrap();
        let all = format!("a\nbc\n{long}\nno end");
        assert_eq!(last_output(&path, 1 << 20).unwrap(), all.as_bytes());
        assert_eq!(last_output(&path, 6).unwrap(), b"no end");
        let (tail, _) = Reader::tail(&path, 2).unwrap();
        assert_eq!(tail, [Chunk::Stderr(b"oh\n".into()), Chunk::Stdout(b"no end".into())]);
    }

    #[test]
    fn a_reader_follows_through_rotations_and_size_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        let mut writer = Writer::open(&path, 4096).unwrap();
        let (_, mut reader) = Reader::tail(&path, 0).unwrap();
        let mut seen = String::new();
        for i in 0..2000 {
            writer.write(Stream::Stdout, format!("line {i}\n").as_bytes()).unwrap();
            if i % 20 == 0 {
                seen += &joined(&reader.more().unwrap().unwrap());
            }
        }
        seen += &joined(&reader.more().unwrap().unwrap());
        let expected: String = (0..2000).map(|i| format!("line {i}\n")).collect();
        assert_eq!(seen, expected);
        let size = |p: &Path| fs::metadata(p).unwrap().len();
        assert!(size(&path) <= 4096 && size(&rotated(&path)) <= 4096);
    }
}
