//! Signed operations: coord checks who signed and knows the way; the node itself decides, remembers
//! the nonce and does it once. Nothing of it is stored here, so the same envelope may be sent again.

use std::time::Duration;

use rhizome_identity::Verified;
use rhizome_model::api::JobView;
use rhizome_model::{Code, Failure, OperationDocument, Phase};
use rhizome_service::clock;

use super::{App, too_many_streams};
use crate::store::AuditEntry;

/// An answer takes a look into the node's queue, and a write.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

impl App {
    /// Passes an operation on to its node: the job that the node makes of it.
    pub(super) async fn operate(
        &self,
        verified: &Verified,
        document: &OperationDocument,
        bytes: &[u8],
    ) -> Result<JobView, Failure> {
        let (id, node) = (verified.document.deployment_id(), document.node);
        let view = self.store.deployment(&id).await?;
        let tasks = view.map(|view| view.tasks).unwrap_or_default();
        let alive = tasks.iter().any(|t| t.phase != Phase::Deleted);
        if !alive {
            return Err(Failure::new(Code::NotFound, format!("there is no deployment {id}")));
        }
        if !tasks.iter().any(|t| t.node == node && t.phase != Phase::Deleted) {
            let message =
                format!("{id} is not on node {node}; `rhizome show {id}` says where it is");
            return Err(Failure::new(Code::WrongNode, message));
        }
        let _permit = self.streams.clone().try_acquire_owned().map_err(|_| too_many_streams().0)?;
        let supervisor = self.nodes.supervisor(node).await?;
        let call = supervisor.ours.post_bytes::<JobView>("/v1/envelopes", bytes.to_vec());
        let job = tokio::time::timeout(ANSWER_WITHIN, call).await.unwrap_or_else(|_| {
            let message = format!(
                "node {node} did not answer within {} s; send the same envelope again",
                ANSWER_WITHIN.as_secs()
            );
            Err(Failure::new(Code::Unavailable, message))
        })?;
        tracing::info!(deployment = %id, %node, job = %job.id, what = document.action.word(),
            digest = verified.digest, "an operation was passed on");
        let entry = AuditEntry {
            at: clock::now_ms(),
            digest: &verified.digest,
            keyids: &verified.signers,
            account: Some(id.account),
            refusal: None,
        };
        self.store.audit(&entry).await?;
        self.known.remember(&verified.account).await;
        Ok(job)
    }
}
