//! Who a key belongs to, for reads: as the ledger says, and while it is away as it said last. For
//! envelopes only the ledger's word counts, so a revoked key deploys nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rhizome_identity::{Accounts, active_account};
use rhizome_model::api::AccountView;
use rhizome_model::statement::Account;
use rhizome_model::{AccountId, Code, Failure, KeyId};

use crate::store::Store;

/// Accounts of which we know that the store has them; beyond, they are just stored again.
const CAPACITY: usize = 10_000;

pub struct KnownAccounts {
    ledger: Arc<dyn Accounts>,
    store: Arc<Store>,
    stored: Mutex<HashMap<AccountId, KeyId>>,
}

impl KnownAccounts {
    pub fn new(ledger: Arc<dyn Accounts>, store: Arc<Store>) -> Self {
        Self { ledger, store, stored: Mutex::default() }
    }

    pub async fn by_key(&self, key: &KeyId) -> Result<Option<AccountView>, Failure> {
        match self.ledger.by_key(key).await {
            Ok(Some(account)) => {
                self.remember(&account).await;
                // The caller signed with this key: where it has ended, it reads nothing any more.
                let active = active_account(self.ledger.as_ref(), key).await?;
                Ok(Some(AccountView { id: active.id, key: *key }))
            }
            Ok(None) => Ok(None),
            Err(failure) if failure.code == Code::Unavailable => {
                match self.store.remembered_account(key).await? {
                    Some(account) => Ok(Some(account)),
                    None => Err(failure),
                }
            }
            Err(failure) => Err(failure),
        }
    }

    /// Keeps an account for the time when the ledger is away.
    pub async fn remember(&self, account: &Account) {
        let Some(key) = account.main_key() else { return };
        let account = AccountView { id: account.id, key };
        {
            let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
            if stored.get(&account.id) == Some(&account.key) {
                return;
            }
            if stored.len() >= CAPACITY {
                stored.clear();
            }
            stored.insert(account.id, account.key);
        }
        if let Err(error) = self.store.remember_account(&account).await {
            // Only reads while the ledger is away lack it.
            tracing::warn!(account = %account.id, error = %Failure::from(error),
                "an account could not be kept");
        }
    }
}
