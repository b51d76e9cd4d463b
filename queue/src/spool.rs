//! Outcomes that wait on local disk while redis-server is away.
//!
//! ```text
//!   finish ─▶ redis-server is away ─▶ a file per call, synced ─▶ delivered when it is back ─▶ removed
//! ```
//!
//! What is kept is the command itself. It is fenced by the runner and the entry like any other, and
//! answered the same when it is repeated: delivered twice it happens once; delivered late it changes
//! nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use redis::Cmd;
use serde::{Deserialize, Serialize};

use crate::link::{Call, Link};
use crate::pending::Place;
use crate::{Queue, QueueError};

/// What a file is called that is being written.
const UNFINISHED: &str = "unfinished";

/// The spool of one runner.
pub(crate) struct Spool {
    folder: PathBuf,
    next: AtomicU64,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// Of the command; all of them are text, but for what a foreign job may hold.
    words: Vec<Vec<u8>>,
    places: Vec<(String, String)>,
}

impl Spool {
    /// The folder appears with the first outcome.
    pub(crate) fn new(folder: &Path, runner: &str) -> Self {
        Self { folder: folder.join(runner), next: AtomicU64::new(1) }
    }

    /// On disk when it returns.
    pub(crate) fn put(&self, link: &Link, call: &Call, places: &[Place]) -> io::Result<()> {
        let places = places.iter().map(|p| (p.lane.to_string(), p.entry.to_string())).collect();
        let kept = Kept { words: call.words(link), places };
        fs::create_dir_all(&self.folder)?;
        let name = format!("{:020}", self.next.fetch_add(1, Ordering::Relaxed));
        // A file of its own until it is whole: several may be written at a time.
        let path = self.folder.join(name);
        let being_written = path.with_extension(UNFINISHED);
        let mut file = File::create(&being_written)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        file.sync_all()?;
        fs::rename(&being_written, &path)?;
        File::open(&self.folder)?.sync_all()
    }

    /// What waits, the oldest first.
    fn waiting(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut paths = entries.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>()?;
        // One that was being written was never acknowledged to anybody.
        paths.retain(|path| !is_unfinished(path));
        paths.sort_unstable();
        Ok(paths)
    }

    /// Delivers what waits, as far as redis-server is there; what was delivered.
    pub(crate) async fn deliver(&self, link: &Link) -> Result<Vec<Place>, QueueError> {
        let mut delivered = Vec::new();
        for path in self.waiting().map_err(|e| unreadable(&self.folder, &e))? {
            let bytes = fs::read(&path).map_err(|e| unreadable(&path, &e))?;
            let kept: Kept = serde_json::from_slice(&bytes)
                .map_err(|e| QueueError::corrupt(path.display().to_string(), e))?;
            let mut cmd = Cmd::new();
            for word in &kept.words {
                cmd.arg(word);
            }
            let answer: redis::Value = link.repeat(&cmd).await?;
            tracing::debug!(file = %path.display(), ?answer, "delivered a spooled outcome");
            fs::remove_file(&path).map_err(|e| unreadable(&path, &e))?;
            delivered.extend(
                kept.places
                    .into_iter()
                    .map(|(lane, entry)| Place { lane: lane.into(), entry: entry.into() }),
            );
        }
        Ok(delivered)
    }

    /// Removes the folder, if nothing waits in it.
    pub(crate) fn close(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| is_unfinished(path)) {
            let _ = fs::remove_file(path);
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

fn is_unfinished(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == UNFINISHED)
}

fn unreadable(path: &Path, error: &io::Error) -> QueueError {
    QueueError::corrupt(path.display().to_string(), error)
}

impl Queue {
    /// Delivers the outcomes that a dead runner left in its spool under `folder`; how many. To be
    /// called before [`Queue::release_runner`], which would have the jobs done again.
    pub async fn deliver_spool(&self, folder: &Path, runner: &str) -> Result<u64, QueueError> {
        let spool = Spool::new(folder, runner);
        let delivered = spool.deliver(&self.link).await?;
        spool.close();
        Ok(delivered.len() as u64)
    }
}
