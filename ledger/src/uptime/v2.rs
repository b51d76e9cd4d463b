//! Our report: it says its boot and counts; what could not be sent is sent later.

use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, Path, State};
use axum::http::{HeaderMap, Method};
use rhizome_model::uptime::{MAX_UPTIME_BATCH, RefusedReport, UptimeBatch, UptimeReply};
use rhizome_model::{AccountId, Code, Failure, KeyId, NodeId};
use rhizome_service::{ApiError, ApiResult, clock};

use super::history::{Report, Verdict};
use crate::db::{DbError, Delivered, Delivery};
use crate::request::{Body, parse_number};
use crate::{App, time};

/// Takes reports of a node, signed by its key; oldest first. Sending one again changes nothing.
#[utoipa::path(post, path = "/nodes/{node_id}/uptime", tag = "uptime", params(("node_id" = u64, Path)),
    request_body = UptimeBatch, responses(
    (status = 200, body = UptimeReply), (status = 400, body = Failure), (status = 401, body = Failure),
    (status = 403, description = "not the node's key", body = Failure), (status = 404, body = Failure),
    (status = 413, body = Failure)))]
pub async fn report(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Json<UptimeReply>> {
    let now = clock::now_secs();
    let key = app.verifier.verify(&method, uri.path(), uri.query(), &headers, body.bytes(), now)?;
    let id = parse_number(&id)
        .map(NodeId)
        .map_err(|e| ApiError::new(Code::BadRequest, format!("not a node's id: {e}")))?;
    let batch: UptimeBatch = body.json().map_err(|e| ApiError::new(Code::BadRequest, e))?;
    if !(1..=MAX_UPTIME_BATCH).contains(&batch.reports.len()) {
        let text = format!("reports: 1 to {MAX_UPTIME_BATCH} in one request");
        return Err(ApiError::new(Code::BadRequest, text));
    }
    let delivered = deliver(&app, id, key, &batch, now).await?;
    match delivered {
        Delivered::Taken { verdicts, highest, restarted } => {
            if restarted {
                tracing::info!(node = %id, "a node has restarted");
            }
            Ok(Json(reply(batch, verdicts, highest)))
        }
        Delivered::NoSuchNode => Err(ApiError::not_found(format_args!("node {id}"))),
        Delivered::NotItsNode => {
            Err(ApiError::new(Code::Unauthorised, format!("node {id} has another key")))
        }
        Delivered::KeyChanged => {
            Err(ApiError::new(Code::RevokedKey, "another key has taken the place of this one"))
        }
    }
}

async fn deliver(
    app: &App,
    node: NodeId,
    key: KeyId,
    batch: &UptimeBatch,
    now: i64,
) -> ApiResult<Delivered> {
    let reports: Vec<Report> = batch.reports.iter().cloned().map(Into::into).collect();
    let seen = time::micros_of_secs(now);
    let remembered = app.keys.account(&key);
    let by = match remembered {
        Some(account) => account,
        None => owner(app, &key).await?,
    };
    let mut delivery = Delivery { node, by, key, reports, now, seen };
    let delivered = app.db.report(delivery.clone()).await.map_err(failed)?;
    if remembered.is_none() || matches!(delivered, Delivered::Taken { .. }) {
        return Ok(delivered);
    }
    app.keys.forget(by, &key);
    delivery.by = owner(app, &key).await?;
    app.db.report(delivery).await.map_err(failed)
}

async fn owner(app: &App, key: &KeyId) -> ApiResult<AccountId> {
    let account = app.db.account_by_key(key).await.map_err(failed)?.ok_or_else(|| {
        ApiError::new(Code::UnknownAccount, "no account has the key that signed this")
    })?;
    app.keys.remember_account(*key, account.twin_id);
    Ok(account.twin_id)
}

fn failed(error: DbError) -> ApiError {
    tracing::error!(%error, "reports were not stored");
    ApiError::new(Code::Internal, "the reports could not be stored; send them again")
}

fn reply(batch: UptimeBatch, verdicts: Vec<Verdict>, highest: u64) -> UptimeReply {
    let mut reply = UptimeReply { stored: 0, known: 0, refused: Vec::new(), highest };
    for (report, verdict) in batch.reports.into_iter().zip(verdicts) {
        match verdict {
            Verdict::Stored => reply.stored += 1,
            Verdict::Known => reply.known += 1,
            Verdict::Refused(reason) => reply.refused.push(RefusedReport {
                boot_id: report.boot_id,
                sequence: report.sequence,
                reason,
            }),
        }
    }
    reply
}
