//! Tells the ledger what a node has free and how it is: what its supervisor says, signed with the
//! node's key.

use std::time::Duration;

use rhizome_identity::{LedgerClient, SigningKey, http_signature};
use rhizome_model::api::{NodeReport, NodeStatus};
use rhizome_model::{Failure, NodeId};
use rhizome_service::{Client, random};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_secs(60);
/// A supervisor that has just been started is not ill.
const FIRST: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The ledger takes no longer one.
const MAX_REASON: usize = 300;

/// Reports until told to stop. What the ledger misses it hears a minute later.
pub async fn report(
    ledger: LedgerClient,
    key: SigningKey,
    node: NodeId,
    supervisor: String,
    shutdown: CancellationToken,
) {
    let supervisor = match Client::new("the supervisor", &supervisor) {
        Ok(client) => client.signed(http_signature::signer(key)),
        Err(error) => return tracing::error!(%error, "the ledger is not told how this node is"),
    };
    let mut pause = FIRST;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
        pause = INTERVAL.mul_f64(0.75 + 0.25 * random::unit());
        if let Err(error) = ledger.report_status(node, &look(&supervisor).await).await {
            tracing::debug!(%error, "the ledger was not told how this node is");
        }
    }
}

async fn look(supervisor: &Client) -> NodeReport {
    let (status, health) = tokio::join!(
        in_time(supervisor.get::<NodeStatus>("/v1/node")),
        in_time(supervisor.get::<Value>("/healthz")),
    );
    let capacity = status.as_ref().ok().map(|s| s.usage);
    let mut reasons: Vec<String> = [status.err(), health.err()]
        .into_iter()
        .flatten()
        .map(|f| f.message.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect())
        .collect();
    reasons.dedup();
    NodeReport { capacity, reasons }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(|_| {
        let message = format!("the supervisor did not answer within {} s", ANSWER_WITHIN.as_secs());
        Err(Failure::new(rhizome_model::Code::Unavailable, message))
    })
}
