//! Statements on disk: one file for each, as it was signed; the last page of changes; the key.
//!
//! What cannot be written is said in the log and costs a question to the ledger after the next
//! start. What cannot be read, or is not signed as it must be, counts as not there.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rhizome_model::statement::{Changes, Revision, Statement, Subject};
use rhizome_model::{Code, Failure, KeyId};

use super::book::Book;
use super::open::open_any_age;

const HEAD: &str = "changes.json";
const KEY: &str = "ledger.key";
/// A page that says nothing new is written this often: it renews what is held over a restart.
const HEAD_EVERY: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
    head: Mutex<Option<(Revision, Instant)>>,
}

impl Disk {
    pub fn open(folder: PathBuf) -> Result<Self, Failure> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|e| unwritable(&folder, &e))?;
        Ok(Self { folder, head: Mutex::default() })
    }

    /// The ledger's key, if it was taken at a first contact.
    pub fn pinned(&self) -> Result<Option<KeyId>, Failure> {
        let path = self.folder.join(KEY);
        match std::fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|e| Failure::new(Code::Internal, format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => {
                let message = format!("cannot read {}: {e}", path.display());
                Err(Failure::new(Code::StateNotWritable, message))
            }
        }
    }

    /// From now on this key counts, also after a restart: so it must be written.
    pub fn pin(&self, key: &KeyId) -> Result<(), Failure> {
        let path = self.folder.join(KEY);
        self.replace(KEY, format!("{key}\n").as_bytes()).map_err(|e| unwritable(&path, &e))
    }

    pub fn load(&self, key: &KeyId, network: &str) -> Book {
        let mut statements = Vec::new();
        let files = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for path in files.map(|f| f.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name == HEAD || !name.ends_with(".json") {
                continue;
            }
            let read = std::fs::read(&path).ok();
            let read = read.and_then(|b| open_any_age::<Statement>(&b, key, network).ok());
            match read {
                Some(statement) if name == file_name(&statement.says.subject()) => {
                    statements.push(statement);
                }
                _ => {
                    tracing::warn!(file = %path.display(), "not a statement of our ledger; it is dropped");
                    drop(std::fs::remove_file(&path));
                }
            }
        }
        let head = std::fs::read(self.folder.join(HEAD)).ok();
        let head = head.and_then(|bytes| open_any_age::<Changes>(&bytes, key, network).ok());
        let mut book = Book::default();
        book.restore(head.as_ref(), statements);
        book
    }

    pub fn keep(&self, subject: &Subject, bytes: &[u8]) {
        self.write(&file_name(subject), bytes);
    }

    pub fn forget(&self, subjects: impl IntoIterator<Item = impl std::borrow::Borrow<Subject>>) {
        for subject in subjects {
            let path = self.folder.join(file_name(subject.borrow()));
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(file = %path.display(), %error, "an old statement stays");
                }
                _ => {}
            }
        }
    }

    pub fn keep_head(&self, changes: &Changes, bytes: &[u8]) {
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let known = head.is_some_and(|(r, at)| r == changes.through && at.elapsed() < HEAD_EVERY);
        if !known && self.write(HEAD, bytes) {
            *head = Some((changes.through, Instant::now()));
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> bool {
        let written = self.replace(name, bytes);
        if let Err(error) = &written {
            tracing::warn!(file = name, %error, "a statement of the ledger could not be kept");
        }
        written.is_ok()
    }

    /// A reader sees the old file or the new one.
    fn replace(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let new = self.folder.join(format!("{name}.{}.new", unique()));
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
        let written = file
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| std::fs::rename(&new, self.folder.join(name)));
        if written.is_err() {
            drop(std::fs::remove_file(&new));
        }
        written
    }
}

/// Two that write the same file at once do not share the new one.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn file_name(subject: &Subject) -> String {
    format!("{}-{}.json", subject.kind(), subject.id())
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Code::StateNotWritable, format!("cannot write {}: {error}", path.display()))
}
