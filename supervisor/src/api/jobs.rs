//! Single jobs: what became of them, and what their account or the operator does about it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use rhizome_model::api::{JobAgain, JobView, OutputChunk};
use rhizome_model::{Failure, JobId};
use rhizome_queue::JobRecord;
use rhizome_service::{ApiError, ApiResult};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::audit::Entry;
use crate::caller::{Caller, Signed};
use crate::{Supervisor, view};

/// Lines that a job is shown with, of so many bytes at most.
const LOG_LINES: usize = 20;
const LOG_BYTES: usize = 64 << 10;
/// What a running job has printed comes without a pause like this, and is not read for longer.
const LOG_PAUSE: Duration = Duration::from_millis(50);
const LOG_PATIENCE: Duration = Duration::from_secs(1);
/// Dead letters that are listed when nobody says how many, and at most.
const DEAD: usize = 100;
const MOST_DEAD: usize = 1000;

#[derive(Deserialize)]
pub struct OfJob {
    id: JobId,
}

#[derive(Deserialize)]
pub struct OfQueue {
    pub queue: String,
}

#[derive(Deserialize)]
pub struct Limit {
    limit: Option<usize>,
}

/// A job with every attempt at it, and the last lines that it printed.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(("id" = String, Path)), responses((status = 200, body = JobView), (status = 404, body = Failure)))]
pub async fn show(
    State(supervisor): State<Arc<Supervisor>>,
    Path(OfJob { id }): Path<OfJob>,
    signed: Signed,
) -> ApiResult<Json<JobView>> {
    let record = supervisor.visible_job(signed.caller, id).await?;
    let log = supervisor.last_lines(id).await;
    Ok(Json(view::job(record, supervisor.facts.id, log)))
}

/// Cancels a job and what it asked for. One that runs is told to stop; one that has ended stays so.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", params(("id" = String, Path)), responses((status = 200, body = JobView), (status = 404, body = Failure)))]
pub async fn cancel(
    State(supervisor): State<Arc<Supervisor>>,
    Path(OfJob { id }): Path<OfJob>,
    signed: Signed,
) -> ApiResult<Json<JobView>> {
    let cancelled = async {
        signed.caller.may_change()?;
        supervisor.visible_job(signed.caller, id).await?;
        supervisor.queue.cancel(id).await.map_err(Failure::from)?;
        supervisor.visible_job(signed.caller, id).await
    };
    let result = cancelled.await;
    supervisor.note_job(&signed, "cancel", id, &result);
    let log = supervisor.last_lines(id).await;
    Ok(Json(view::job(result?, supervisor.facts.id, log)))
}

/// Does a job that has ended again, under a new id. Asking twice is the same job.
#[utoipa::path(post, path = "/v1/jobs/{id}/again", params(("id" = String, Path)), responses((status = 200, body = JobAgain), (status = 404, body = Failure), (status = 409, body = Failure)))]
pub async fn again(
    State(supervisor): State<Arc<Supervisor>>,
    Path(OfJob { id }): Path<OfJob>,
    signed: Signed,
) -> ApiResult<Json<JobAgain>> {
    let repeated = async {
        signed.caller.may_change()?;
        supervisor.visible_job(signed.caller, id).await?;
        let id = supervisor.queue.again(id).await.map_err(Failure::from)?;
        Ok(JobAgain { id })
    };
    let result = repeated.await;
    supervisor.note_job(&signed, "again", id, &result);
    Ok(Json(result?))
}

/// The jobs of a queue that failed for good or took their runners with them, oldest first. An
/// account sees its own.
#[utoipa::path(get, path = "/v1/queues/{queue}/dead", params(("queue" = String, Path), ("limit" = Option<usize>, Query)), responses((status = 200, body = [JobId])))]
pub async fn dead(
    State(supervisor): State<Arc<Supervisor>>,
    Path(OfQueue { queue }): Path<OfQueue>,
    Query(query): Query<Limit>,
    signed: Signed,
) -> ApiResult<Json<Vec<JobId>>> {
    let limit = query.limit.unwrap_or(DEAD).min(MOST_DEAD);
    if supervisor.is_operator(signed.caller).await? {
        return Ok(Json(supervisor.queue.dead(&queue, limit).await.map_err(Failure::from)?));
    }
    let mut own = Vec::new();
    for id in supervisor.queue.dead(&queue, MOST_DEAD).await.map_err(Failure::from)? {
        let record = supervisor.queue.job(id).await.map_err(Failure::from)?;
        if own.len() < limit && record.is_some_and(|r| is_own(signed.caller, &r)) {
            own.push(id);
        }
    }
    Ok(Json(own))
}

fn is_own(caller: Caller, record: &JobRecord) -> bool {
    caller == Caller::Account(record.job.account)
}

impl Supervisor {
    /// A job of the caller's account; an operator's are all. Others cannot even tell that it exists.
    async fn visible_job(&self, caller: Caller, id: JobId) -> ApiResult<JobRecord> {
        let record = self.queue.job(id).await.map_err(Failure::from)?;
        match record {
            Some(record) if is_own(caller, &record) || self.is_operator(caller).await? => {
                Ok(record)
            }
            _ => Err(ApiError::not_found(format_args!(
                "job {id} on this node; what ended is kept for an hour"
            ))),
        }
    }

    /// The last lines of what it printed until now.
    pub(crate) async fn last_lines(&self, id: JobId) -> Vec<String> {
        let mut output = std::pin::pin!(self.queue.output(id));
        let (mut text, end) = (Vec::new(), Instant::now() + LOG_PATIENCE);
        while let Ok(Some(Ok(chunk))) =
            timeout_at(end.min(Instant::now() + LOG_PAUSE), output.next()).await
        {
            match chunk {
                OutputChunk::Stdout { data } | OutputChunk::Stderr { data } => {
                    text.extend(STANDARD.decode(data).unwrap_or_default());
                }
                OutputChunk::Exit { .. } | OutputChunk::Failed { .. } => break,
            }
            if text.len() > 2 * LOG_BYTES {
                text.drain(..text.len() - LOG_BYTES);
            }
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|l| (*l).to_owned()).collect()
    }

    fn note_job<T>(&self, signed: &Signed, what: &'static str, id: JobId, result: &ApiResult<T>) {
        self.note(&Entry {
            about: Some(&id.to_string()),
            signers: &[signed.key],
            what,
            refused: result.as_ref().err().map(|e| e.0.code),
            ..Entry::default()
        });
    }
}
