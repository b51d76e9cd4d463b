//! Who changed what, in the order in which it was changed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use rhizome_model::Failure;
use serde::Deserialize;

use super::{Query, Reply};
use crate::App;
use crate::db::audit::AuditEntry;

const DEFAULT_LIMIT: u64 = 100;
const MAX_LIMIT: u64 = 1000;

#[derive(Deserialize)]
pub struct Part {
    after: Option<u64>,
    limit: Option<u64>,
}

/// The changes after a number. Each row's hash is over the row and the hash before it.
#[utoipa::path(get, path = "/audit", tag = "audit", params(
    ("after" = Option<u64>, Query, description = "0 without it"),
    ("limit" = Option<u64>, Query, description = "100 without it, 1000 at most")),
    responses((status = 200, body = [AuditEntry]), (status = 400, body = Failure)))]
pub async fn list(
    State(app): State<Arc<App>>,
    Query(part): Query<Part>,
) -> Reply<Json<Vec<AuditEntry>>> {
    let limit = part.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    let after = part.after.unwrap_or_default().min(i64::MAX.unsigned_abs());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    Ok(Json(app.db.audit_after(after, limit).await?))
}
