//! What the node's farm allows: to whom it is open, who owns it, which coordinators may follow.
//!
//! As the ledger says it under its signature, so also while the ledger is away. Only who needs more
//! than was granted on this node, of what was granted on the farm, has to wait for the ledger: it
//! alone knows what the others have.

use std::collections::HashMap;
use std::time::Duration;

use rhizome_model::api::{NodeUsage, UsageReply};
use rhizome_model::statement::{Allowance, Farm, FarmAccess};
use rhizome_model::{AccountId, Capacity, Code, Failure, KeyId};
use rhizome_queue::{Allow, Beyond};
use rhizome_service::clock;
use tokio_util::sync::CancellationToken;

use crate::Supervisor;

/// How often the ledger is told what accounts have given up.
const EVERY: Duration = Duration::from_secs(10);
/// After so many rounds it is told all of it again: it may have been brought back from a backup.
const AGAIN: u32 = 60;

impl Supervisor {
    async fn farm(&self) -> Result<Farm, Failure> {
        let id = self.facts.farm;
        self.statements.farm(id).await?.ok_or_else(|| {
            Failure::new(Code::Unavailable, format!("the ledger does not know our farm {id}"))
        })
    }

    /// Who owns the farm operates the node.
    pub(crate) async fn is_owner(&self, account: AccountId) -> Result<bool, Failure> {
        Ok(self.farm().await?.owner == account)
    }

    /// Configured at the node, or named by the farm's owner.
    pub(crate) async fn is_coordinator(&self, key: &KeyId) -> bool {
        self.coordinators.contains(key)
            || self.farm().await.is_ok_and(|farm| farm.coordinators.contains(key))
    }

    /// What an account may have here without anybody being asked.
    pub(crate) async fn allow(&self, account: AccountId) -> Result<Allow, Failure> {
        Ok(self.grants(account).await?.map_or(Allow::All, |(node, _)| Allow::AtLeast(node)))
    }

    /// What a deployment that has `reserved` may have here at most, by what was granted; none where
    /// that is whatever is free.
    pub(crate) async fn granted(
        &self,
        account: AccountId,
        reserved: Capacity,
    ) -> Result<Option<Capacity>, Failure> {
        let Some((node, farm)) = self.grants(account).await? else { return Ok(None) };
        let others = self.queue.reserved_by(account).await?.saturating_sub(reserved);
        Ok(Some(node.saturating_add(farm).saturating_sub(others)))
    }

    /// What was granted to an account of this node, and of the farm besides; none where it needs no
    /// grant.
    async fn grants(&self, account: AccountId) -> Result<Option<(Capacity, Capacity)>, Failure> {
        let farm = self.farm().await?;
        match farm.allowance(self.facts.id, account, clock::now_secs()) {
            Allowance::All => Ok(None),
            Allowance::UpTo { node, farm } => Ok(Some((node, farm))),
            Allowance::Nothing => {
                let message = format!(
                    "farm {} is closed, and account {account} has no grant for node {}; its owner, \
                     account {}, can give one with `rhizome grant`",
                    farm.id, self.facts.id, farm.owner
                );
                Err(Failure::new(Code::NotGranted, message))
            }
        }
    }

    /// Has the ledger agree that an account has more, as far as the farm's grants go.
    pub(crate) async fn raise(&self, account: AccountId, beyond: &Beyond) -> Result<(), Failure> {
        if let Some((node, farm)) = self.grants(account).await?
            && node.saturating_add(farm).admit(beyond.needed).is_err()
        {
            let message = format!(
                "account {account} was granted {node} on node {} and {farm} on the farm besides; {beyond}",
                self.facts.id
            );
            return Err(Failure::new(Code::NotGranted, message));
        }
        self.queue.agree(account, beyond, |usage| self.tell(usage)).await
    }

    async fn tell(&self, usage: NodeUsage) -> Result<UsageReply, Failure> {
        self.manager.post("/v1/usage", &usage).await
    }

    /// Tells the ledger what accounts have no more, for ever.
    pub(crate) async fn watch_allowances(&self, stop: CancellationToken) {
        let (mut told, mut away) = (HashMap::new(), false);
        for round in 0u32.. {
            if round.is_multiple_of(AGAIN) {
                told.clear();
            }
            match self.trim_allowances(&mut told).await {
                Ok(()) => away = false,
                // Said once per absence.
                Err(error) if !std::mem::replace(&mut away, true) => {
                    tracing::warn!(%error, "cannot tell the ledger what accounts have; tries again");
                }
                Err(_) => {}
            }
            if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
        }
    }

    async fn trim_allowances(&self, told: &mut HashMap<AccountId, u64>) -> Result<(), Failure> {
        let mut accounts = self.queue.accounts_with_allowance().await?;
        let mut failed = None;
        let (farm, now) = (self.farm().await?, clock::now_secs());
        if farm.access == FarmAccess::Closed {
            // What they have from the time when it was open counts, too.
            accounts.extend(self.queue.accounts_that_reserve().await?);
        }
        for account in accounts.into_iter().filter(|account| *account != farm.owner) {
            let least = match farm.allowance(self.facts.id, account, now) {
                Allowance::UpTo { node, .. } => node,
                Allowance::All | Allowance::Nothing => Capacity::default(),
            };
            let known = told.get(&account).copied();
            match self.queue.trim(account, least, known, |usage| self.tell(usage)).await {
                Ok(number) => {
                    told.insert(account, number);
                }
                // Nor would it take what the others have.
                Err(error) if error.code == Code::Unavailable => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
