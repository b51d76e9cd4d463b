//! More than an account was allowed here: the ledger is asked, by way of the identity manager.

use rhizome_model::api::UsageReply;
use rhizome_model::{AccountId, Code, Failure};
use rhizome_queue::{Beyond, Queue};
use rhizome_service::Client;

#[derive(Clone)]
pub(crate) struct Allowances {
    queue: Queue,
    manager: Option<Client>,
}

impl Allowances {
    pub(crate) fn new(queue: Queue, manager: Option<Client>) -> Self {
        Self { queue, manager }
    }

    /// Has the ledger agree to more. Fails with its refusal.
    pub(crate) async fn raise(&self, account: AccountId, beyond: &Beyond) -> Result<(), Failure> {
        let manager = self.manager.as_ref().ok_or_else(|| {
            let message = format!("this node has no identity manager to ask for more: {beyond}");
            Failure::new(Code::NotGranted, message)
        })?;
        let ask = |usage| async move { manager.post::<UsageReply>("/v1/usage", &usage).await };
        self.queue.agree(account, beyond, ask).await
    }
}
