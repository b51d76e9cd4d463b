//! The audit log: one JSON line per request that wanted something changed, accepted or refused.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use rhizome_model::{Code, DeploymentId, Failure, KeyId};
use rhizome_service::clock;
use serde::Serialize;

pub struct Audit {
    file: Mutex<File>,
}

#[derive(Default, Serialize)]
pub struct Entry<'a> {
    /// Names the signed content; absent when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment: Option<&'a DeploymentId>,
    /// What it is about where that is no deployment: a job, a pool, an account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<&'a str>,
    pub signers: &'a [KeyId],
    pub what: &'static str,
    /// Absent when it was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Code>,
}

#[derive(Serialize)]
struct Line<'a> {
    at: i64,
    #[serde(flatten)]
    entry: &'a Entry<'a>,
}

impl Audit {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let file = file.map_err(|e| {
            let message = format!("cannot write the audit log {}: {e}", path.display());
            Failure::new(Code::StateNotWritable, message)
        })?;
        Ok(Self { file: Mutex::new(file) })
    }

    /// Writes one line at once. What cannot be written is in the log instead.
    pub fn write(&self, entry: &Entry<'_>) {
        let line = Line { at: clock::now_ms(), entry };
        let written =
            serde_json::to_vec(&line).map_err(std::io::Error::from).and_then(|mut bytes| {
                bytes.push(b'\n');
                let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                file.write_all(&bytes)
            });
        if let Err(error) = written {
            tracing::error!(%error, what = entry.what, "cannot write the audit log");
        }
    }
}
