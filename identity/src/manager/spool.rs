//! Uptime reports that the ledger has not taken yet, on disk: `STATE/uptime.json`.
//!
//! A report is made when it is due, whether the ledger is there or not, and goes out in the order in
//! which it was made. The spool is bounded: the oldest go first, and their numbers stay missing.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use rhizome_model::uptime::{BootId, BootReport, MAX_UPTIME_BATCH, UptimeBatch, UptimeReply};
use rhizome_model::{Code, Failure};
use serde::{Deserialize, Serialize};

use super::store::write;

/// Six weeks of reports, one per quarter of an hour: about half a megabyte.
pub const MAX_WAITING: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    boot_id: BootId,
    /// The number of the next report of this boot.
    next: u64,
    reports: VecDeque<BootReport>,
}

#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    waiting: Waiting,
}

impl Spool {
    /// What was left, to go on in the boot that this is. A spool that cannot be read is begun anew:
    /// reports are no reason not to start.
    pub fn open(state: &Path, boot_id: BootId) -> Self {
        let path = state.join("uptime.json");
        let read = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Waiting>(&bytes).map_err(|e| e.to_string()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Waiting { boot_id: boot_id.clone(), next: 1, reports: VecDeque::new() })
            }
            Err(e) => Err(e.to_string()),
        };
        let mut waiting = read.unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), error, "waiting uptime reports are lost");
            Waiting { boot_id: boot_id.clone(), next: 1, reports: VecDeque::new() }
        });
        if waiting.boot_id != boot_id {
            (waiting.boot_id, waiting.next) = (boot_id, 1);
        }
        Self { path, waiting }
    }

    pub fn len(&self) -> usize {
        self.waiting.reports.len()
    }

    /// Writes a report down.
    pub fn put(&mut self, uptime_s: u64, at: i64) -> Result<(), Failure> {
        let boot_id = self.waiting.boot_id.clone();
        let sequence = self.waiting.next;
        self.waiting.next += 1;
        self.waiting.reports.push_back(BootReport { boot_id, sequence, uptime_s, at });
        while self.waiting.reports.len() > MAX_WAITING {
            let lost = self.waiting.reports.pop_front();
            tracing::warn!(at = lost.map(|r| r.at), "the oldest uptime report is given up");
        }
        self.save()
    }

    /// The oldest ones, as many as one request takes; none when nothing waits.
    pub fn batch(&self) -> Option<UptimeBatch> {
        let reports: Vec<_> = self.waiting.reports.iter().take(MAX_UPTIME_BATCH).cloned().collect();
        (!reports.is_empty()).then_some(UptimeBatch { reports })
    }

    /// The ledger has answered for this batch: it is done with, whatever became of each.
    pub fn done(&mut self, batch: &UptimeBatch, reply: &UptimeReply) -> Result<(), Failure> {
        for refused in &reply.refused {
            tracing::error!(boot_id = %refused.boot_id, sequence = refused.sequence,
                reason = refused.reason, "the ledger refuses an uptime report");
        }
        let sent = |r: &BootReport| {
            batch.reports.iter().any(|s| (&s.boot_id, s.sequence) == (&r.boot_id, r.sequence))
        };
        while self.waiting.reports.front().is_some_and(sent) {
            self.waiting.reports.pop_front();
        }
        // A node whose spool was lost counts on behind what the ledger has.
        let last_is_ours = batch.reports.last().is_some_and(|r| r.boot_id == self.waiting.boot_id);
        if last_is_ours && reply.highest >= self.waiting.next && self.waiting.reports.is_empty() {
            self.waiting.next = reply.highest + 1;
        }
        self.save()
    }

    fn save(&self) -> Result<(), Failure> {
        let text = serde_json::to_vec(&self.waiting).expect("numbers and ids have a JSON form");
        write(&self.path, &text).map_err(|e| {
            let message = format!("cannot write {}: {e}", self.path.display());
            Failure::new(Code::StateNotWritable, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use rhizome_model::uptime::RefusedReport;

    use super::*;

    fn boot(n: u8) -> BootId {
        format!("{n:08x}-0000-4000-8000-000000000000").parse().unwrap()
    }

    fn reply(highest: u64) -> UptimeReply {
        UptimeReply { stored: 0, known: 0, refused: vec![], highest }
    }

    fn numbers(spool: &Spool) -> Vec<(BootId, u64)> {
        let reports = spool.batch().map(|b| b.reports).unwrap_or_default();
        reports.into_iter().map(|r| (r.boot_id, r.sequence)).collect()
    }

    #[test]
    fn reports_wait_over_restarts_and_boots_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), boot(1));
        spool.put(10, 100).unwrap();
        let mut spool = Spool::open(dir.path(), boot(1));
        spool.put(20, 110).unwrap();
        let mut spool = Spool::open(dir.path(), boot(2));
        spool.put(5, 200).unwrap();
        assert_eq!(numbers(&spool), [(boot(1), 1), (boot(1), 2), (boot(2), 1)]);
        let batch = spool.batch().unwrap();
        spool.put(15, 210).unwrap();
        let refused = vec![RefusedReport { boot_id: boot(1), sequence: 2, reason: "a lie".into() }];
        spool.done(&batch, &UptimeReply { refused, ..reply(1) }).unwrap();
        assert_eq!(numbers(&spool), [(boot(2), 2)]);
        let mut again = Spool::open(dir.path(), boot(2));
        assert_eq!(numbers(&again), [(boot(2), 2)]);
        again.done(&spool.batch().unwrap(), &reply(2)).unwrap();
        assert_eq!((again.batch(), again.len()), (None, 0));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(dir.path(), boot(1));
        let report = |n| BootReport { boot_id: boot(1), sequence: n, uptime_s: n, at: n as i64 };
        spool.waiting.reports = (1..=MAX_WAITING as u64).map(report).collect();
        spool.waiting.next = MAX_WAITING as u64 + 1;
        spool.put(9, 9).unwrap();
        assert_eq!(spool.len(), MAX_WAITING);
        assert_eq!(spool.batch().unwrap().reports[0].sequence, 2);
        assert_eq!(spool.batch().unwrap().reports.len(), MAX_UPTIME_BATCH);
    }

    #[test]
    fn a_spool_that_was_lost_counts_on_behind_the_ledger() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("uptime.json"), "{").unwrap();
        let mut spool = Spool::open(dir.path(), boot(1));
        spool.put(10, 100).unwrap();
        let batch = spool.batch().unwrap();
        spool.done(&batch, &reply(41)).unwrap();
        spool.put(20, 110).unwrap();
        assert_eq!(numbers(&spool), [(boot(1), 42)]);
    }
}
