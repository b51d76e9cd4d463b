//! Snapshots: what a volume held at a time, read-only, in `<pool>/snapshots/VOLUME/NAME`.
//!
//! ```text
//!   take      volume ──snapshot──▶ .new-NAME ──note, read-only──▶ NAME
//!   restore   NAME ──snapshot──▶ .new-VOLUME ──note──▶ exchanged with VOLUME ──▶ the old one goes
//! ```
//!
//! A subvolume has its name when it is whole, and a note on it says for whom that was: who was
//! interrupted and asks again goes on where it was, or is told that it is done.

use std::fs;
use std::path::PathBuf;

use rhizome_model::kind::VolumeSnapshot;
use rhizome_model::{Code, Name, ResourceId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Driver;
use crate::btrfs::{self, Counted};
use crate::error::{During, Result, SalError, shown};
use crate::node::NEW;
use crate::workload::to_value;
use crate::{files, machine};

/// Each of them is one more that every write into shared extents has to look at.
const MOST: usize = 64;

/// For whom a subvolume was made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "made", rename_all = "snake_case")]
enum Note {
    Snapshot { by: String, at: i64 },
    Restored { by: String },
}

impl Driver {
    /// In the order of their names.
    pub(super) fn snapshots(&self, id: &ResourceId) -> Result<Vec<VolumeSnapshot>> {
        let folder = self.snapshot_folder(id);
        let mut found = Vec::new();
        for name in files::names(&folder)? {
            let Some(Note::Snapshot { at, .. }) = read(&folder.join(&name)) else { continue };
            found.extend(name.parse().map(|name| VolumeSnapshot { name, taken_at: at }));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    pub(super) fn take_snapshot(&self, id: &ResourceId, name: &Name, by: &str) -> Result<Value> {
        let (store, path) = (&self.node.store, self.existing(id)?);
        let folder = self.snapshot_folder(id);
        let (kept, new) = (folder.join(name.as_str()), folder.join(format!("{NEW}{name}")));
        if store.has(&kept) {
            return match read(&kept) {
                Some(Note::Snapshot { by: maker, at }) if maker == by => Ok(answer(name, at)),
                _ => Err(SalError::new(
                    Code::Conflict,
                    format!("volume {id} has a snapshot {name} already: take another name"),
                )),
            };
        }
        if self.snapshots(id)?.len() >= MOST {
            return Err(SalError::new(
                Code::QuotaExceeded,
                format!("volume {id} has {MOST} snapshots: drop one first"),
            ));
        }
        files::make_folder(&folder)?;
        // Also what others have left who were broken off.
        for half in files::names(&folder)?.iter().filter(|name| name.starts_with(NEW)) {
            store.delete(&folder.join(half))?;
        }
        store.snapshot(&path, &new)?;
        store.count_with(&new, &path)?;
        let at = jiff::Timestamp::now().as_millisecond();
        write(&new, &Note::Snapshot { by: by.to_owned(), at })?;
        store.set_readonly(&new)?;
        fs::rename(&new, &kept).during(format_args!("name the snapshot {}", shown(&kept)))?;
        // What is said to be kept is on disk.
        store.sync()?;
        Ok(answer(name, at))
    }

    pub(super) fn restore(&self, id: &ResourceId, name: &Name, by: &str) -> Result<Value> {
        let (store, path) = (&self.node.store, self.existing(id)?);
        let (kept, new) = (self.snapshot_folder(id).join(name.as_str()), self.node.new_volume(id));
        let done = Note::Restored { by: by.to_owned() };
        if read(&path).as_ref() != Some(&done) {
            if !store.has(&kept) {
                return Err(no_snapshot(id, name));
            }
            if let Some(machine) = machine::user_of(&self.node, id)? {
                return Err(SalError::new(
                    Code::Conflict,
                    format!("machine {machine} runs with volume {id} mounted: stop it first"),
                ));
            }
            store.delete(&new)?;
            store.snapshot(&kept, &new)?;
            store.count_with(&new, &path)?;
            let (_, limit) = store.usage(&path, Counted::Referenced)?;
            if let (btrfs::QuotaMode::Full, Some(limit)) = (store.quota, limit) {
                store.limit(&new, Counted::Referenced, limit)?;
            }
            write(&new, &done)?;
            store.exchange(&new, &path)?;
            store.sync()?;
        }
        // Under this name there is now what was there before.
        store.delete(&new)?;
        let status = crate::workload::Driver::observe(self, id)?;
        to_value(status)
    }

    pub(super) fn drop_snapshot(&self, id: &ResourceId, name: &Name) -> Result<Value> {
        self.existing(id)?;
        self.node.store.delete(&self.snapshot_folder(id).join(name.as_str()))?;
        Ok(json!({}))
    }

    /// All of them, whole or half.
    pub(super) fn drop_snapshots(&self, id: &ResourceId) -> Result<()> {
        let folder = self.snapshot_folder(id);
        for name in files::names(&folder)? {
            self.node.store.delete(&folder.join(name))?;
        }
        files::remove_folder(&folder)
    }

    fn existing(&self, id: &ResourceId) -> Result<PathBuf> {
        let path = self.node.volume(id);
        if self.node.store.has(&path) {
            return Ok(path);
        }
        Err(SalError::new(Code::NotFound, format!("there is no volume {id} on this node")))
    }

    fn snapshot_folder(&self, id: &ResourceId) -> PathBuf {
        self.node.snapshots().join(id.file_name())
    }
}

fn answer(name: &Name, at: i64) -> Value {
    json!(VolumeSnapshot { name: name.clone(), taken_at: at })
}

fn no_snapshot(id: &ResourceId, name: &Name) -> SalError {
    SalError::new(Code::NotFound, format!("volume {id} has no snapshot {name}"))
}

fn read(path: &std::path::Path) -> Option<Note> {
    serde_json::from_str(&btrfs::read_note(path)?).ok()
}

fn write(path: &std::path::Path, note: &Note) -> Result<()> {
    let note = serde_json::to_string(note)
        .map_err(std::io::Error::from)
        .during(format_args!("mark {}", shown(path)))?;
    btrfs::write_note(path, &note)
}
