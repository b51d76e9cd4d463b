//! Submissions.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use http::StatusCode;
use rhizome_identity::{Verified, digest, verify};
use rhizome_model::api::{JobView, Submitted};
use rhizome_model::{AccountId, Code, Document, Envelope, Failure, KeyId, NodeId, Phase, TraceId};
use rhizome_service::{ApiError, ApiResult, clock};
use serde::Serialize;
use tokio::sync::SemaphorePermit;
use tracing::Instrument;

use super::App;
use crate::store::{AuditEntry, Order, TaskKey};

/// What an envelope has led to.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Taken {
    Submitted(Submitted),
    /// Of an operation: its job on its node.
    Job(Box<JobView>),
}

/// Takes a signed envelope: when this answers, it is on disk and on its way. An operation is on its
/// node's disk, and the answer is its job.
#[utoipa::path(
    post, path = "/v1/envelopes", tag = "deployments",
    request_body(content = String, content_type = "application/json", description = "A DSSE envelope"),
    responses(
        (status = 202, body = inline(Taken), description = "Stored; follow its events, or its job"),
        (status = "4XX", body = Failure, description = "Refused; nothing was changed"),
    )
)]
pub async fn submit(
    State(app): State<App>,
    body: Result<Bytes, BytesRejection>,
) -> ApiResult<(StatusCode, Json<Taken>)> {
    let bytes = body.map_err(unreadable)?;
    // A task of its own: what was stored is dispatched, also when the caller does not wait for it.
    let work = app.clone();
    let taken =
        app.shutdown.tracker.spawn(async move { work.take(&bytes).await }).await.map_err(
            |_| Failure::new(Code::Internal, "a fault of ours stopped the submission"),
        )??;
    Ok((StatusCode::ACCEPTED, Json(taken)))
}

fn unreadable(rejection: BytesRejection) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let most = rhizome_model::MAX_ENVELOPE_BYTES;
        ApiError::new(Code::TooLarge, format!("an envelope has at most {most} bytes"))
    } else {
        ApiError::new(Code::BadRequest, rejection.body_text())
    }
}

impl App {
    async fn take(&self, bytes: &[u8]) -> Result<Taken, Failure> {
        let permit = self.submissions.acquire().await.expect("nothing ever closes it");
        let checked = self.check(bytes).await;
        let account = checked.as_ref().ok().map(|v| v.account.id);
        let taken = match checked {
            Ok(verified) => {
                let trace_id = TraceId::of_payload(&verified.envelope.payload);
                let span = tracing::info_span!("intake", %trace_id);
                self.act_on(&verified, bytes, permit).instrument(span).await
            }
            Err(failure) => Err(failure),
        };
        let code = taken.as_ref().err().map_or("accepted".to_owned(), |f| f.code.to_string());
        metrics::counter!("rhizome_coord_submissions_total", "code" => code).increment(1);
        if let Err(failure) = &taken {
            self.note_refusal(bytes, account, failure).await;
        }
        taken
    }

    async fn act_on(
        &self,
        verified: &Verified,
        bytes: &[u8],
        permit: SemaphorePermit<'_>,
    ) -> Result<Taken, Failure> {
        match &verified.document {
            Document::Operation(document) => {
                // A node that does not answer keeps nobody else from submitting.
                drop(permit);
                self.operate(verified, document, bytes).await.map(|job| Taken::Job(Box::new(job)))
            }
            Document::Deployment(_) | Document::Delete(_) => {
                self.keep(verified, bytes).await.map(Taken::Submitted)
            }
        }
    }

    async fn check(&self, bytes: &[u8]) -> Result<Verified, Failure> {
        let verified =
            verify(bytes, self.statements.as_ref(), &self.network, clock::now_secs()).await?;
        if let Document::Deployment(document) = &verified.document {
            for node in &document.placement.nodes {
                self.check_node(*node, document.account).await?;
            }
        }
        Ok(verified)
    }

    async fn check_node(&self, node: NodeId, account: AccountId) -> Result<(), Failure> {
        if let Some(known) = self.nodes.find(node).await? {
            return self.check_grant(node, known.farm, account).await;
        }
        let message =
            format!("there is no node {node}; `rhizome nodes` lists those that there are");
        Err(Failure::new(Code::WrongNode, message))
    }

    async fn keep(&self, verified: &Verified, bytes: &[u8]) -> Result<Submitted, Failure> {
        let submitted = self.store.submit(verified, bytes, clock::now_ms()).await?;
        self.dispatcher.send(submitted.nodes.iter().map(|node| Order {
            key: TaskKey { deployment: submitted.deployment.clone(), node: *node },
            version: submitted.version,
            deletes: submitted.phase == Phase::Deleting,
            envelope: verified.digest.clone(),
            bytes: bytes.to_owned(),
        }));
        tracing::info!(deployment = %submitted.deployment, version = %submitted.version,
            phase = %submitted.phase, digest = verified.digest, "an envelope was accepted");
        self.known.remember(&verified.account).await;
        Ok(submitted)
    }

    async fn note_refusal(&self, bytes: &[u8], account: Option<AccountId>, failure: &Failure) {
        let envelope = Envelope::from_json(bytes).ok();
        let digest = envelope.as_ref().map_or_else(String::new, digest);
        let keyids: Vec<KeyId> = envelope
            .iter()
            .flat_map(|e| &e.signatures)
            .filter_map(|s| s.keyid.parse().ok())
            .collect();
        tracing::info!(code = %failure.code, digest, ?account, "an envelope was refused");
        let entry = AuditEntry {
            at: clock::now_ms(),
            digest: &digest,
            keyids: &keyids,
            account,
            refusal: Some(failure),
        };
        if let Err(error) = self.store.audit(&entry).await {
            tracing::error!(error = %Failure::from(error), "a refusal is not in the audit log");
        }
    }
}
