//! Small files that are there whole or not at all.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{During, Result, shown};

/// Replaces a file in one step.
pub(crate) fn replace(path: &Path, bytes: &[u8], durable: bool) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || {
        let mut file = fs::File::create(&new)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&new, path)
    };
    write().during(format_args!("write {}", shown(path)))
}

pub(crate) fn replace_json<T: Serialize>(path: &Path, value: &T, durable: bool) -> Result<()> {
    let json = serde_json::to_vec(value)
        .map_err(std::io::Error::from)
        .during(format_args!("write {}", shown(path)))?;
    replace(path, &json, durable)
}

/// What a JSON file says; nothing when it is not there, or when a power cut left it unreadable.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

pub(crate) fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).during(format_args!("make the folder {}", shown(path)))
}

/// Removes a file that may not be there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    absent(fs::remove_file(path)).during(format_args!("remove {}", shown(path)))
}

/// Removes a folder that may not be there, with what is in it.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    absent(fs::remove_dir_all(path)).during(format_args!("remove {}", shown(path)))
}

fn absent(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The names in a folder; none when it is not there.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.during(format_args!("read the folder {}", shown(path)))?,
    };
    Ok(entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
}

/// Whether nothing is in a folder, however large: only the first entry is read.
pub(crate) fn is_empty(path: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(path).during(format_args!("read the folder {}", shown(path)))?;
    Ok(entries.next().is_none())
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}
