//! What the node's farm allows: to whom it is open, who owns it, which coordinators may follow.
//!
//! As the ledger says it under its signature, so also while the ledger is away.

use rhizome_model::statement::{Allowance, Farm};
use rhizome_model::{AccountId, Capacity, Code, DeploymentId, Failure, KeyId};
use rhizome_service::clock;
use tokio::sync::MutexGuard;

use crate::Supervisor;

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

    /// Whether a deployment may reserve so much here. What is returned is held until it has: two
    /// deployments at once do not both get the rest of a grant.
    pub(crate) async fn granted(
        &self,
        deployment: &DeploymentId,
        demand: Capacity,
    ) -> Result<Option<MutexGuard<'_, ()>>, Failure> {
        let (farm, account) = (self.farm().await?, deployment.account);
        let limit = match farm.allowance(self.facts.id, account, clock::now_secs()) {
            Allowance::All => return Ok(None),
            Allowance::UpTo { node, farm } => node.saturating_add(farm),
            Allowance::Nothing => {
                let message = format!(
                    "farm {} is closed, and account {account} has no grant for node {}; its owner, \
                     account {}, can give one with `rhizome grant`",
                    farm.id, self.facts.id, farm.owner
                );
                return Err(Failure::new(Code::NotGranted, message));
            }
        };
        let turn = self.granting.lock().await;
        let tasks = self.queue.tasks().await?;
        let others = tasks
            .iter()
            .filter(|t| t.deployment.account == account && t.deployment != *deployment)
            .map(|t| t.reserved);
        let used = Capacity::total(others);
        limit.saturating_sub(used).admit(demand).map_err(|short| {
            let message = format!(
                "account {account} was granted {limit} on node {}, of which its other deployments \
                 have {used}: {short}",
                self.facts.id
            );
            Failure::new(Code::NotGranted, message)
        })?;
        Ok(Some(turn))
    }
}
