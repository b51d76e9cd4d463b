//! Who owns the node's farm, and so operates the node: as the ledger says, remembered.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rhizome_identity::LedgerClient;
use rhizome_model::{AccountId, Code, Failure, FarmId};

/// How long an answer is used without asking again.
const FRESH: Duration = Duration::from_secs(60);
/// How long it is used while the ledger is away.
const STALE: Duration = Duration::from_secs(3600);

pub struct Owner {
    ledger: LedgerClient,
    farm: FarmId,
    known: Mutex<Option<(AccountId, Instant)>>,
}

impl Owner {
    pub fn new(ledger: LedgerClient, farm: FarmId) -> Self {
        Self { ledger, farm, known: Mutex::default() }
    }

    pub async fn is(&self, account: AccountId) -> Result<bool, Failure> {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((owner, at)) = known
            && at.elapsed() < FRESH
        {
            return Ok(owner == account);
        }
        match self.ledger.farm(self.farm).await {
            Ok(farm) => {
                let owner = farm.map(|f| f.twin_id);
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) =
                    owner.map(|o| (o, Instant::now()));
                Ok(owner == Some(account))
            }
            Err(failure) => match known {
                Some((owner, at)) if failure.code == Code::Unavailable && at.elapsed() < STALE => {
                    Ok(owner == account)
                }
                _ => Err(failure),
            },
        }
    }
}
