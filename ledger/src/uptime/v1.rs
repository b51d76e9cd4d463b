//! v4's report: that a node is up, now.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use rhizome_model::registrar::{Acknowledged, UptimeReport};
use rhizome_model::{Failure, KeyId, NodeId};
use rhizome_service::clock;

use super::history::{Report, Verdict};
use crate::auth::Claim;
use crate::db::{Delivered, Delivery};
use crate::error::{LedgerError, Reply};
use crate::nodes::{find, node_id};
use crate::request::Body;
use crate::{App, time};

/// A report's time may be this far from ours.
const WINDOW_SECS: u64 = 60;

/// Takes a node's report that it is up.
#[utoipa::path(post, path = "/nodes/{node_id}/uptime", tag = "nodes", params(("node_id" = u64, Path)),
    request_body = UptimeReport, responses(
    (status = 201, body = Acknowledged), (status = 400, body = Failure),
    (status = 401, body = Failure), (status = 404, body = Failure)))]
pub async fn report(
    State(app): State<Arc<App>>,
    claim: Claim,
    Path(id): Path<String>,
    body: Body,
) -> Reply<(StatusCode, Json<Acknowledged>)> {
    let key = verified_key(&app, &claim).await?;
    let id = node_id(&id, "Invalid node id")?;
    let report: UptimeReport = body.json().map_err(LedgerError::bad_request)?;
    let uptime = i64::try_from(report.uptime).ok().filter(|uptime| *uptime > 0);
    let uptime =
        uptime.ok_or_else(|| LedgerError::bad_request("uptime must be a number from 1"))?;
    let now = clock::now_secs();
    if report.timestamp.abs_diff(now) > WINDOW_SECS {
        // As v4 has it, whose node it is is asked first.
        let known = find(&app, id, "node not found").await?;
        claim.must_be(known.twin_id)?;
        let text = format!(
            "invalid timestamp hint: must be within ±60 seconds of the current time ({})",
            time::rfc3339(time::now_micros())
        );
        return Err(LedgerError::bad_request(text).with_server_time(now));
    }
    let report = Report { boot: None, uptime, at: report.timestamp };
    match deliver(&app, id, &claim, key, report, now).await? {
        Delivered::Taken { verdicts, restarted, .. } => {
            if let Some(Verdict::Refused(why)) = verdicts.into_iter().next() {
                return Err(LedgerError::bad_request(why));
            }
            if restarted {
                tracing::info!(node = %id, uptime_s = uptime, "a node has restarted");
            }
            let done = Acknowledged { message: "uptime reported successfully".into() };
            Ok((StatusCode::CREATED, Json(done)))
        }
        Delivered::NoSuchNode => Err(LedgerError::not_found("node not found")),
        Delivered::NotItsNode => Err(LedgerError::not_owner()),
        Delivered::KeyChanged => Err(LedgerError::signature_failed()),
    }
}

/// The key with which the claim verifies. One that we remember may have been changed since: then the
/// one of now counts.
async fn verified_key(app: &App, claim: &Claim) -> Reply<KeyId> {
    if let Some(key) = app.keys.key(claim.account)
        && claim.verify(&key).is_ok()
    {
        return Ok(key);
    }
    let key = claim.current_key(app).await?;
    claim.verify(&key)?;
    app.keys.remember_key(claim.account, key);
    Ok(key)
}

async fn deliver(
    app: &App,
    node: NodeId,
    claim: &Claim,
    key: KeyId,
    report: Report,
    now: i64,
) -> Reply<Delivered> {
    let seen = time::micros_of_secs(report.at);
    let mut delivery = Delivery { node, by: claim.account, key, reports: vec![report], now, seen };
    let failed = |e| LedgerError::database("failed to process uptime report", &e);
    let delivered = app.db.report(delivery.clone()).await.map_err(failed)?;
    if delivered != Delivered::KeyChanged {
        return Ok(delivered);
    }
    app.keys.forget(claim.account, &key);
    delivery.key = verified_key(app, claim).await?;
    app.db.report(delivery).await.map_err(failed)
}
