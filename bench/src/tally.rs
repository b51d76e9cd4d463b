//! What the handlers of a worker have in common: they count, and nothing else.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

#[derive(Default)]
pub struct Tally {
    begun: AtomicU64,
    ended: AtomicU64,
    target: AtomicU64,
    changed: Notify,
    holds: AtomicBool,
    /// When handlers began, by the number of the job; only while latencies are measured.
    starts: Mutex<Option<Vec<Option<Instant>>>>,
    timed: AtomicBool,
}

impl Tally {
    /// A handler begins. It does not end while the worker is to hold what it takes.
    pub async fn begin(&self, n: u64) {
        if self.timed.load(Ordering::Relaxed) {
            self.note(n, Instant::now());
        }
        self.begun.fetch_add(1, Ordering::Relaxed);
        if self.holds.load(Ordering::Relaxed) {
            self.changed.notify_one();
            std::future::pending::<()>().await;
        }
    }

    pub fn end(&self) {
        let ended = self.ended.fetch_add(1, Ordering::AcqRel) + 1;
        if ended == self.target.load(Ordering::Acquire) {
            self.changed.notify_one();
        }
    }

    /// Waits until so many have ended.
    pub async fn until(&self, target: u64) {
        self.target.store(target, Ordering::Release);
        while self.ended() < target {
            self.changed.notified().await;
        }
    }

    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    pub fn hold(&self) {
        self.holds.store(true, Ordering::Relaxed);
    }

    pub async fn until_held(&self) {
        while self.begun.load(Ordering::Relaxed) == 0 {
            self.changed.notified().await;
        }
    }

    pub fn time(&self, jobs: usize) {
        *self.starts() = Some(vec![None; jobs]);
        self.timed.store(true, Ordering::Relaxed);
    }

    pub fn times(&self) -> Vec<Option<Instant>> {
        self.timed.store(false, Ordering::Relaxed);
        self.starts().take().unwrap_or_default()
    }

    fn note(&self, n: u64, at: Instant) {
        if let Some(start) = self.starts().as_mut().and_then(|s| s.get_mut(n as usize)) {
            start.get_or_insert(at);
        }
    }

    fn starts(&self) -> std::sync::MutexGuard<'_, Option<Vec<Option<Instant>>>> {
        self.starts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
