//! Coordinators: who runs them, what they sign with, where they listen.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_identity::verify_bytes;
use rhizome_model::api::CoordinatorRegistration;
use rhizome_model::statement::{Coordinator, Subject};
use rhizome_model::{Code, Failure, KeyId};
use serde_json::json;

use super::change::{Change, Signed};
use super::{Path, Refusal, Reply, read};
use crate::App;
use crate::db::access;

const MAX_URL: usize = 256;

/// The coordinators that are registered; at most 1000.
#[utoipa::path(get, path = "/coordinators", tag = "coordinators",
    responses((status = 200, body = [Coordinator])))]
pub async fn list(State(app): State<Arc<App>>) -> Reply<Json<Vec<Coordinator>>> {
    Ok(Json(app.db.coordinators().await?))
}

/// Registers a coordinator of the caller's account, or says that it listens elsewhere now. Its key
/// signs that it belongs there.
#[utoipa::path(put, path = "/coordinators/{key}", tag = "coordinators",
    params(("key" = String, Path)), request_body = CoordinatorRegistration,
    responses((status = 200, body = Coordinator), (status = "4XX", body = Failure)))]
pub async fn register(
    State(app): State<Arc<App>>,
    Path(key): Path<KeyId>,
    signed: Signed,
) -> Reply<Json<Coordinator>> {
    let wanted: CoordinatorRegistration = read(&signed.body)?;
    let web = wanted.url.starts_with("http://") || wanted.url.starts_with("https://");
    let plain = wanted.url.bytes().all(|b| b.is_ascii_graphic());
    if !web || !plain || wanted.url.len() > MAX_URL {
        let message = format!("url: http:// or https://, at most {MAX_URL} characters");
        return Err(Refusal::bad_request(message));
    }
    let mut change = Change::begin(&app, &signed).await?;
    let proof = STANDARD
        .decode(&wanted.proof)
        .map_err(|_| Refusal::bad_request("proof: base64 of a signature"))?;
    let claim = CoordinatorRegistration::claim(&app.network, change.account, &wanted.url);
    verify_bytes(&key, claim.as_bytes(), &proof)
        .map_err(|e| Refusal::new(Code::BadSignature, format!("proof: {e}")))?;
    if let Some(known) = access::coordinator(&mut change.tx, &key).await? {
        if known.account != change.account {
            let message = format!("coordinator {key} is account {}'s", known.account);
            return Err(Refusal::new(Code::Unauthorised, message));
        }
        if known.withdrawn {
            let message = format!("coordinator {key} was withdrawn; give it a new key");
            return Err(Refusal::new(Code::Conflict, message));
        }
    }
    let account = change.account;
    let coordinator = Coordinator { key, account, url: wanted.url, withdrawn: false };
    access::put_coordinator(&mut change.tx, &coordinator).await?;
    let subject = Subject::Coordinator(key);
    let detail = json!({ "url": coordinator.url });
    change.done("coordinator.register", &subject, &detail, [subject]).await?;
    Ok(Json(coordinator))
}

/// Takes a coordinator back, for ever. Every farm that named it names it no longer.
#[utoipa::path(delete, path = "/coordinators/{key}", tag = "coordinators",
    params(("key" = String, Path)),
    responses((status = 200, body = Coordinator), (status = "4XX", body = Failure)))]
pub async fn withdraw(
    State(app): State<Arc<App>>,
    Path(key): Path<KeyId>,
    signed: Signed,
) -> Reply<Json<Coordinator>> {
    let mut change = Change::begin(&app, &signed).await?;
    let known = access::coordinator(&mut change.tx, &key).await?.filter(|c| !c.withdrawn);
    let known = known.ok_or_else(|| Refusal::not_found(format_args!("coordinator {key}")))?;
    if known.account != change.account {
        let message = format!("coordinator {key} is account {}'s", known.account);
        return Err(Refusal::new(Code::Unauthorised, message));
    }
    let coordinator = Coordinator { withdrawn: true, ..known };
    access::put_coordinator(&mut change.tx, &coordinator).await?;
    let farms = access::forget_coordinator(&mut change.tx, &key).await?;
    let subject = Subject::Coordinator(key);
    let changed = [subject].into_iter().chain(farms.into_iter().map(Subject::Farm));
    change.done("coordinator.withdraw", &subject, &json!({}), changed).await?;
    Ok(Json(coordinator))
}
