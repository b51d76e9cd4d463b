//! `/zos/version`: which version of Zero-OS nodes should run. A text that we keep and do not read.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::Failure;
use rhizome_model::registrar::ZosVersion;

use crate::App;
use crate::auth::Authenticated;
use crate::error::{LedgerError, Reply};
use crate::request::Body;

const MAX_VERSION: usize = 1024;

/// The version, as base64 of JSON in a JSON text.
#[utoipa::path(get, path = "/zos/version", tag = "zos", responses(
    (status = 200, body = String), (status = 404, body = Failure)))]
pub async fn get(State(app): State<Arc<App>>) -> Reply<Json<String>> {
    let failed = |e| LedgerError::database("failed to get zos version", &e);
    let version = app.db.zos_version().await.map_err(failed)?;
    version.map(Json).ok_or_else(|| LedgerError::not_found("zos version not set"))
}

/// Sets it; only the ledger's administrator may.
#[utoipa::path(put, path = "/zos/version", tag = "zos", request_body = ZosVersion, responses(
    (status = 200, description = "set"), (status = 400, body = Failure), (status = 401, body = Failure),
    (status = 404, body = Failure), (status = 409, description = "it is set already", body = Failure)))]
pub async fn set(
    State(app): State<Arc<App>>,
    caller: Authenticated,
    body: Body,
) -> Reply<StatusCode> {
    let request: ZosVersion = body.json().map_err(LedgerError::bad_request)?;
    let readable = STANDARD.decode(&request.version).is_ok();
    if request.version.is_empty() || request.version.len() > MAX_VERSION || !readable {
        let text = format!("version must be base64 of {MAX_VERSION} letters at most");
        return Err(LedgerError::bad_request(text));
    }
    caller.must_be(app.admin)?;
    let failed = |e| LedgerError::database("failed to set zos version", &e);
    if app.db.set_zos_version(&request.version).await.map_err(failed)? {
        tracing::info!(account = %app.admin, "the version of Zero-OS was set");
        Ok(StatusCode::OK)
    } else {
        Err(LedgerError::conflict("version already set"))
    }
}
