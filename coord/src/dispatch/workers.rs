//! One worker per key: started when it is needed, woken when it is there, and never gone while
//! somebody believes that it was woken.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::Notify;

type Bells<K> = Arc<Mutex<HashMap<K, Arc<Notify>>>>;

pub struct Workers<K: Eq + Hash + Clone> {
    bells: Bells<K>,
    limit: usize,
}

pub enum Wake<K: Eq + Hash + Clone> {
    /// It is there and has heard.
    Heard,
    /// It is to be started with this.
    Start(Work<K>),
    /// There are too many.
    Full,
}

/// A running worker's place. Dropped, also by a panic, it makes room for another.
pub struct Work<K: Eq + Hash + Clone> {
    pub key: K,
    pub bell: Arc<Notify>,
    bells: Bells<K>,
}

impl<K: Eq + Hash + Clone> Workers<K> {
    pub fn new(limit: usize) -> Self {
        Self { bells: Bells::default(), limit }
    }

    /// Rings the worker's bell, or makes room for it.
    pub fn wake(&self, key: K) -> Wake<K> {
        self.enter(key, true)
    }

    /// Makes room for a worker that need not hear anything if it is there already.
    pub fn start(&self, key: K) -> Wake<K> {
        self.enter(key, false)
    }

    fn enter(&self, key: K, ring: bool) -> Wake<K> {
        let mut bells = lock(&self.bells);
        if let Some(bell) = bells.get(&key) {
            if ring {
                bell.notify_one();
            }
            return Wake::Heard;
        }
        if bells.len() >= self.limit {
            return Wake::Full;
        }
        let bell = Arc::new(Notify::new());
        bells.insert(key.clone(), bell.clone());
        Wake::Start(Work { key, bell, bells: self.bells.clone() })
    }

    pub fn is_running(&self, key: &K) -> bool {
        lock(&self.bells).contains_key(key)
    }

    /// Rings the bells of those workers that are there.
    pub fn ring(&self, which: impl Fn(&K) -> bool) {
        lock(&self.bells).iter().filter(|(k, _)| which(k)).for_each(|(_, bell)| bell.notify_one());
    }
}

impl<K: Eq + Hash + Clone> Work<K> {
    /// Whether the worker may end: not if its bell was rung since it looked.
    pub fn may_end(&self) -> bool {
        let mut bells = lock(&self.bells);
        if self.bell.notified().now_or_never().is_some() {
            return false;
        }
        bells.remove(&self.key);
        true
    }
}

impl<K: Eq + Hash + Clone> Drop for Work<K> {
    fn drop(&mut self) {
        let mut bells = lock(&self.bells);
        // After `may_end` the key may be another worker's.
        if bells.get(&self.key).is_some_and(|bell| Arc::ptr_eq(bell, &self.bell)) {
            bells.remove(&self.key);
        }
    }
}

fn lock<K>(bells: &Mutex<HashMap<K, Arc<Notify>>>) -> MutexGuard<'_, HashMap<K, Arc<Notify>>> {
    // Each change is one insertion or removal: nothing can be half done.
    bells.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_was_woken_does_not_end() {
        let workers = Workers::new(1);
        let Wake::Start(work) = workers.wake(1) else { panic!("it was not there") };
        assert!(matches!(workers.wake(2), Wake::Full));
        assert!(matches!(workers.wake(1), Wake::Heard));
        assert!(!work.may_end());
        assert!(work.may_end());
        let Wake::Start(next) = workers.wake(1) else { panic!("it had ended") };
        drop(work);
        assert!(workers.is_running(&1), "the next worker's place was taken away");
        drop(next);
        assert!(!workers.is_running(&1));
    }
}
