//! Accounts, remembered: a lookup per envelope would make the ledger part of every deployment.
//!
//! An answer is fresh for a minute. While the ledger cannot be reached it counts for an hour, so
//! that a node serves on while the ledger is away. That an account is *not* there is never
//! remembered: whoever registers can deploy at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rhizome_model::api::AccountView;
use rhizome_model::{AccountId, Code, Failure, KeyId};

use crate::Accounts;

/// How long an answer is used without asking again; a revocation takes this long to arrive.
const FRESH: Duration = Duration::from_secs(60);
/// How long an answer is used while the ledger does not answer.
const STALE: Duration = Duration::from_secs(3600);
/// More accounts than one node serves; each takes about a hundred bytes.
const CAPACITY: usize = 10_000;

pub struct CachedAccounts {
    source: Arc<dyn Accounts>,
    fresh: Duration,
    stale: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<AccountId, (AccountView, Instant)>,
    by_key: HashMap<KeyId, AccountId>,
}

impl CachedAccounts {
    /// The source is mostly a [`crate::LedgerClient`].
    pub fn new(source: Arc<dyn Accounts>) -> Self {
        Self::with_times(source, FRESH, STALE)
    }

    pub fn with_times(source: Arc<dyn Accounts>, fresh: Duration, stale: Duration) -> Self {
        Self { source, fresh, stale, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change of the maps is complete before anything in it can panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(
        &self,
        cached: Option<(AccountView, Duration)>,
        answer: Result<Option<AccountView>, Failure>,
    ) -> Result<Option<AccountView>, Failure> {
        match answer {
            Ok(Some(account)) => {
                self.known().remember(account.clone());
                Ok(Some(account))
            }
            Ok(None) => {
                if let Some((account, _)) = cached {
                    self.known().forget(&account);
                }
                Ok(None)
            }
            Err(failure) => match cached {
                Some((account, age)) if failure.code == Code::Unavailable && age <= self.stale => {
                    tracing::warn!(account = %account.id, error = %failure,
                        "the ledger does not answer; an older answer is used");
                    Ok(Some(account))
                }
                _ => Err(failure),
            },
        }
    }
}

impl Known {
    fn get(&self, id: AccountId) -> Option<(AccountView, Duration)> {
        self.by_id.get(&id).map(|(account, at)| (account.clone(), at.elapsed()))
    }

    fn remember(&mut self, account: AccountView) {
        if self.by_id.len() >= CAPACITY && !self.by_id.contains_key(&account.id) {
            let oldest = self.by_id.values().min_by_key(|(_, at)| *at).map(|(a, _)| a.clone());
            if let Some(oldest) = oldest {
                self.forget(&oldest);
            }
        }
        if let Some((before, _)) = self.by_id.get(&account.id) {
            self.by_key.remove(&before.key);
        }
        self.by_key.insert(account.key, account.id);
        self.by_id.insert(account.id, (account, Instant::now()));
    }

    fn forget(&mut self, account: &AccountView) {
        self.by_id.remove(&account.id);
        self.by_key.remove(&account.key);
    }
}

#[async_trait]
impl Accounts for CachedAccounts {
    async fn by_key(&self, key: &KeyId) -> Result<Option<AccountView>, Failure> {
        let cached = {
            let known = self.known();
            known.by_key.get(key).and_then(|id| known.get(*id))
        };
        match cached {
            Some((account, age)) if age < self.fresh => Ok(Some(account)),
            cached => self.settle(cached, self.source.by_key(key).await),
        }
    }

    async fn by_id(&self, id: AccountId) -> Result<Option<AccountView>, Failure> {
        let cached = self.known().get(id);
        match cached {
            Some((account, age)) if age < self.fresh => Ok(Some(account)),
            cached => self.settle(cached, self.source.by_id(id).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A ledger that counts its calls and can be away; account n has the key n × 32.
    #[derive(Default)]
    struct Source {
        calls: AtomicUsize,
        away: std::sync::atomic::AtomicBool,
        empty: std::sync::atomic::AtomicBool,
    }

    impl Source {
        fn answer(&self, id: u64) -> Result<Option<AccountView>, Failure> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            if self.away.load(Ordering::Relaxed) {
                return Err(Failure::new(Code::Unavailable, "cannot reach ledger"));
            }
            let account = AccountView { id: AccountId(id), key: KeyId([id as u8; 32]) };
            Ok((!self.empty.load(Ordering::Relaxed)).then_some(account))
        }
    }

    #[async_trait]
    impl Accounts for Source {
        async fn by_key(&self, key: &KeyId) -> Result<Option<AccountView>, Failure> {
            self.answer(key.0[0].into())
        }
        async fn by_id(&self, id: AccountId) -> Result<Option<AccountView>, Failure> {
            self.answer(id.0)
        }
    }

    fn cached(fresh: u64, stale: u64) -> (Arc<Source>, CachedAccounts) {
        let source = Arc::new(Source::default());
        let [fresh, stale] = [fresh, stale].map(Duration::from_secs);
        (source.clone(), CachedAccounts::with_times(source, fresh, stale))
    }

    #[tokio::test]
    async fn a_fresh_answer_is_used_by_key_and_by_id() {
        let (source, accounts) = cached(60, 60);
        for _ in 0..3 {
            assert_eq!(accounts.by_id(AccountId(7)).await.unwrap().unwrap().id.0, 7);
            assert_eq!(accounts.by_key(&KeyId([7; 32])).await.unwrap().unwrap().id.0, 7);
        }
        assert_eq!(source.calls.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_old_answer_counts_only_while_the_ledger_is_away() {
        let (source, accounts) = cached(0, 60);
        accounts.by_id(AccountId(7)).await.unwrap();
        source.away.store(true, Ordering::Relaxed);
        assert!(accounts.by_id(AccountId(7)).await.unwrap().is_some());
        assert_eq!(accounts.by_id(AccountId(8)).await.unwrap_err().code, Code::Unavailable);
        source.away.store(false, Ordering::Relaxed);
        source.empty.store(true, Ordering::Relaxed);
        assert!(accounts.by_id(AccountId(7)).await.unwrap().is_none());
        source.away.store(true, Ordering::Relaxed);
        assert!(accounts.by_id(AccountId(7)).await.is_err(), "a deleted account was remembered");
    }

    #[tokio::test]
    async fn an_answer_that_is_too_old_does_not_count() {
        let (source, accounts) = cached(0, 0);
        accounts.by_id(AccountId(7)).await.unwrap();
        source.away.store(true, Ordering::Relaxed);
        assert!(accounts.by_id(AccountId(7)).await.is_err());
    }

    #[tokio::test]
    async fn that_there_is_no_account_is_not_remembered() {
        let (source, accounts) = cached(60, 60);
        source.empty.store(true, Ordering::Relaxed);
        assert!(accounts.by_id(AccountId(7)).await.unwrap().is_none());
        source.empty.store(false, Ordering::Relaxed);
        assert!(accounts.by_id(AccountId(7)).await.unwrap().is_some());
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let mut known = Known::default();
        for n in 0..(CAPACITY as u64 + 100) {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            known.remember(AccountView { id: AccountId(n), key: KeyId(key) });
        }
        assert_eq!((known.by_id.len(), known.by_key.len()), (CAPACITY, CAPACITY));
    }
}
