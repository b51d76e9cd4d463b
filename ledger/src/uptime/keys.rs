//! The keys of those who report, remembered.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use rhizome_model::{AccountId, KeyId};

/// About 30 MiB.
const MAX_KNOWN: usize = 300_000;

/// Accounts and their keys, as they were when they were asked for. Only a hint: what is verified with
/// it is asked for again by the commit.
#[derive(Default)]
pub struct KnownKeys {
    keys: Mutex<HashMap<AccountId, KeyId>>,
    accounts: Mutex<HashMap<KeyId, AccountId>>,
}

impl KnownKeys {
    pub fn key(&self, account: AccountId) -> Option<KeyId> {
        lock(&self.keys).get(&account).copied()
    }

    pub fn account(&self, key: &KeyId) -> Option<AccountId> {
        lock(&self.accounts).get(key).copied()
    }

    pub fn remember_key(&self, account: AccountId, key: KeyId) {
        remember(&mut lock(&self.keys), account, key);
    }

    pub fn remember_account(&self, key: KeyId, account: AccountId) {
        remember(&mut lock(&self.accounts), key, account);
    }

    pub fn forget(&self, account: AccountId, key: &KeyId) {
        lock(&self.keys).remove(&account);
        lock(&self.accounts).remove(key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember<K: Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: V) {
    // All of them go at once: whoever reports next is asked for once more.
    if map.len() >= MAX_KNOWN {
        map.clear();
    }
    map.insert(key, value);
}
