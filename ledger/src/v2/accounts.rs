//! Accounts and the keys that they have and had.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use rhizome_identity::{check_key, verify_signatures};
use rhizome_model::statement::{
    Account, KeyChange, KeyDocument, KeyRefusal, Subject, payload_type,
};
use rhizome_model::{AccountId, Code, Envelope, Failure};
use rhizome_service::clock;

use super::change::{Change, Signed};
use super::statements::SignedStatement;
use super::{Path, Refusal, Reply};
use crate::App;
use crate::db::{self, DbError};

/// An account, with the history of its keys.
#[utoipa::path(get, path = "/accounts/{id}", tag = "accounts", params(("id" = u64, Path)),
    responses((status = 200, body = Account), (status = 400, body = Failure), (status = 404, body = Failure)))]
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<AccountId>) -> Reply<Json<Account>> {
    let account = app.db.account_keys(id).await?;
    account.map(Json).ok_or_else(|| Refusal::not_found(format_args!("account {id}")))
}

/// Adds, rotates or revokes a key, or sets the threshold.
///
/// The body is a DSSE envelope of the type `application/vnd.rhizome.keys.v1+json`, with the
/// signatures of all keys that agree. One of them also signs the request.
#[utoipa::path(post, path = "/accounts/{id}/keys", tag = "accounts", params(("id" = u64, Path)),
    request_body = SignedStatement,
    responses((status = 200, body = Account), (status = "4XX", body = Failure)))]
pub async fn change_keys(
    State(app): State<Arc<App>>,
    Path(id): Path<AccountId>,
    signed: Signed,
) -> Reply<Json<Account>> {
    let envelope = Envelope::from_json(&signed.body)
        .map_err(|e| Refusal::new(Code::BadEnvelope, e.to_string()))?;
    if envelope.payload_type != payload_type::KEYS {
        let message = format!("the payload type must be {}", payload_type::KEYS);
        return Err(Refusal::new(Code::UnknownPayloadType, message));
    }
    let signers = verify_signatures(&envelope)
        .map_err(|e| Refusal::new(Code::BadSignature, e.to_string()))?;
    let document = KeyDocument::parse(&envelope.payload)
        .map_err(|e| Refusal::new(Code::InvalidDocument, e))?;
    if document.network != app.network {
        let message = format!("it was signed for another network; this is {:?}", app.network);
        return Err(Refusal::new(Code::WrongNetwork, message));
    }
    let now = clock::now_secs();
    document.check_time(now).map_err(|e| Refusal::new(Code::Expired, e))?;
    if document.account != id {
        let message = format!("it was signed for account {}, not {id}", document.account);
        return Err(Refusal::new(Code::Unauthorised, message));
    }
    let mut change = Change::begin(&app, &signed).await?;
    if change.account != id || !signers.contains(&change.key) {
        let message = format!("one of the keys of account {id} that signed must make the request");
        return Err(Refusal::new(Code::Unauthorised, message));
    }
    // The document's own nonce: who passed it on cannot pass it on again.
    let mut once = blake3::Hasher::new_derive_key("rhizome 2026 key document v1");
    once.update(&id.0.to_le_bytes()).update(document.nonce.as_bytes());
    let once = *once.finalize().as_bytes();
    if !db::keys::first_time(&mut change.tx, &once, document.expires, now).await? {
        return Err(Refusal::new(Code::Replayed, "this change of keys was made before"));
    }
    if let KeyChange::Add { key, .. } | KeyChange::Rotate { new: key, .. } = &document.change {
        check_key(key).map_err(|e| Refusal::bad_request(e.to_string()))?;
    }
    let account = db::keys::keys_in(&mut change.tx, id).await?;
    let account = account.ok_or_else(|| Refusal::not_found(format_args!("account {id}")))?;
    let account = account.changed(&document.change, &signers, now).map_err(refuse)?;
    match db::keys::replace_keys(&mut change.tx, &account).await {
        Err(DbError::Duplicate) => {
            let message = "the key is, or was, another account's; make a new one";
            return Err(Refusal::new(Code::Conflict, message));
        }
        done => done?,
    }
    // The key of its node is the account's.
    let node = db::keys::node_of(&mut change.tx, id).await?.map(Subject::Node);
    let (action, subject) = (action(&document.change), Subject::Account(id));
    let changed = [Some(subject), node].into_iter().flatten();
    change.done(action, &subject, &document.change, changed).await?;
    Ok(Json(account))
}

const fn action(change: &KeyChange) -> &'static str {
    match change {
        KeyChange::Add { .. } => "key.add",
        KeyChange::Rotate { .. } => "key.rotate",
        KeyChange::Revoke { .. } => "key.revoke",
        KeyChange::Threshold { .. } => "key.threshold",
    }
}

fn refuse(refusal: KeyRefusal) -> Refusal {
    let code = match refusal {
        KeyRefusal::NotActive(_) => Code::NotFound,
        KeyRefusal::Known(_) => Code::Conflict,
        KeyRefusal::Unsigned(_) | KeyRefusal::TooLight { .. } => Code::Unauthorised,
        KeyRefusal::Weight | KeyRefusal::TooMany => Code::BadRequest,
    };
    Refusal::new(code, refusal.to_string())
}
