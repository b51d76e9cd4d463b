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

#[cfg(test)]
mod tests {
    use rhizome_model::registrar::Farm;

    use super::*;

    fn farm(owner: u64) -> Farm {
        Farm {
            farm_id: FarmId(1),
            farm_name: "home".into(),
            twin_id: AccountId(owner),
            stellar_address: String::new(),
            dedicated: false,
            created_at: String::new(),
            updated_at: String::new(),
        }
    }

    #[tokio::test]
    async fn the_ledgers_word_counts_and_is_remembered_while_it_is_away() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let route = axum::routing::get(async || axum::Json(farm(7)));
        let router = axum::Router::new().route("/v1/farms/1", route);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });

        let owner = |farm| Owner::new(LedgerClient::new(&url, None).unwrap(), FarmId(farm));
        let known = owner(1);
        assert!(known.is(AccountId(7)).await.unwrap());
        assert!(!known.is(AccountId(8)).await.unwrap());
        serving.abort();
        let _ = serving.await;
        // Fresh, then old, then too old.
        assert!(known.is(AccountId(7)).await.unwrap());
        let age = |age| {
            let at = Instant::now().checked_sub(age);
            *known.known.lock().unwrap() = at.map(|at| (AccountId(7), at));
            at.is_some()
        };
        assert!(age(FRESH * 2), "this machine has just been started");
        assert!(known.is(AccountId(7)).await.unwrap() && !known.is(AccountId(8)).await.unwrap());
        if age(STALE * 2) {
            assert_eq!(known.is(AccountId(7)).await.unwrap_err().code, Code::Unavailable);
        }
        assert_eq!(owner(1).is(AccountId(7)).await.unwrap_err().code, Code::Unavailable);
    }
}
