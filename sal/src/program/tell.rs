//! Telling what a program printed, and that it ended.

use std::time::{Duration, Instant};

use rhizome_model::{Code, ResourceId};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::life::Life;
use super::{Programs, log};
use crate::error::{Result, SalError};
use crate::workload::Sink;

/// Of what a program printed, `wait` answers this much.
const WAIT_OUTPUT: usize = 64 << 10;
/// How soon an end, or a new line of a log, is noticed: at first, and when nothing happens.
const SOON: Duration = Duration::from_millis(2);
const LATE: Duration = Duration::from_millis(100);
/// One that is being started or stopped by somebody else is without a shim for a moment; after this
/// it counts as lost.
const LOST_PATIENCE: Duration = Duration::from_secs(2);

impl Programs {
    /// Waits for the end of a program that ends.
    pub fn wait(&self, id: &ResourceId, cancel: &CancellationToken) -> Result<Value> {
        let place = self.place(id);
        let mut pause = SOON;
        let mut lost_at = None;
        loop {
            let lives = place.shim().is_some();
            match place.record() {
                Some(record) if matches!(record.life, Life::Exited { .. } | Life::Stopped) => {
                    let output = log::last_output(&place.log, WAIT_OUTPUT)?;
                    return Ok(json!({
                        "exit_code": record.exit_code,
                        "output": String::from_utf8_lossy(&output),
                    }));
                }
                _ if lives => lost_at = None,
                _ => {
                    // It may be starting, or just be put down.
                    let since: &Instant = lost_at.get_or_insert_with(Instant::now);
                    if since.elapsed() > LOST_PATIENCE {
                        let message = format!(
                            "{} {id} is not watched by anything: ensure it, and wait again",
                            self.kind
                        );
                        return Err(SalError::new(Code::Unavailable, message));
                    }
                }
            }
            sleep(&mut pause, cancel, &format!("waiting for {} {id}", self.kind))?;
        }
    }

    /// The last lines of the log, as one text.
    pub fn last_lines(&self, id: &ResourceId, lines: usize) -> Result<String> {
        log::last_lines(&self.place(id).log, lines)
    }

    /// Hands over the last entries of the log, and on request what comes from then on.
    pub fn logs(
        &self,
        id: &ResourceId,
        tail: usize,
        follow: bool,
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<Value> {
        let place = self.place(id);
        let (chunks, mut reader) = log::Reader::tail(&place.log, tail)?;
        let mut wanted = chunks.into_iter().all(&mut *sink);
        let mut pause = SOON;
        while follow && wanted {
            match reader.more()? {
                Some(chunks) if !chunks.is_empty() => {
                    wanted = chunks.into_iter().all(&mut *sink);
                    pause = SOON;
                }
                // The resource is gone.
                None if !place.dir.exists() => break,
                Some(_) | None => {}
            }
            sleep(&mut pause, cancel, "following a log")?;
        }
        Ok(json!({}))
    }
}

fn sleep(pause: &mut Duration, cancel: &CancellationToken, what: &str) -> Result<()> {
    if cancel.is_cancelled() {
        return Err(SalError::new(Code::Cancelled, format!("{what} was cancelled")));
    }
    std::thread::sleep(*pause);
    *pause = (*pause * 3 / 2).min(LATE);
    Ok(())
}
