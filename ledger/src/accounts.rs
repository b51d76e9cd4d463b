//! `/accounts`: a key with an id.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_identity::sshsig::{namespace, verify_sshsig};
use rhizome_model::registrar::{
    Account, AccountUpdate, Acknowledged, NewAccount, account_challenge, base64_key,
};
use rhizome_model::{AccountId, Failure};
use rhizome_service::clock;

use crate::App;
use crate::auth::Authenticated;
use crate::db::DbError;
use crate::error::{LedgerError, Reply};
use crate::request::{Body, check_text, parse_number};
use crate::scheme;

/// The time that is signed for a new account may be this far from ours.
const WINDOW_SECS: u64 = 2;
/// What an account may say about where it is reached.
const MAX_RELAYS: usize = 32;
const MAX_TEXT: usize = 1024;

/// Makes an account for a key.
#[utoipa::path(post, path = "/accounts", tag = "accounts", request_body = NewAccount, responses(
    (status = 201, body = Account),
    (status = 400, description = "not a key, not a signature, or not in time", body = Failure),
    (status = 401, description = "the signature does not verify", body = Failure),
    (status = 409, description = "the key has an account", body = Failure)))]
pub async fn create(State(app): State<Arc<App>>, body: Body) -> Reply<(StatusCode, Json<Account>)> {
    let request: NewAccount = body.json().map_err(LedgerError::bad_request)?;
    let key = base64_key::decode(&request.public_key)
        .filter(scheme::check_key)
        .ok_or_else(|| LedgerError::bad_request("invalid public key format"))?;
    let now = clock::now_secs();
    if request.timestamp.abs_diff(now) > WINDOW_SECS {
        let error = LedgerError::bad_request("timestamp outside acceptable window");
        return Err(error.with_server_time(now));
    }
    let signature = STANDARD
        .decode(&request.signature)
        .map_err(|e| LedgerError::bad_request(format!("invalid signature format: {e}")))?;
    let challenge = account_challenge(request.timestamp, &request.public_key);
    let challenge = challenge.as_bytes();
    // A key on a token signs in the form of SSH only.
    let is_the_keys = scheme::verify(&key, challenge, &signature)
        || verify_sshsig(&key, namespace::ACCOUNT, challenge, &signature).is_ok();
    if !is_the_keys {
        let text = "signature verification error: the signature does not fit key and timestamp";
        return Err(LedgerError::unauthenticated(text));
    }
    let rmb_enc_key = request.rmb_enc_key.as_deref().unwrap_or_default();
    check_reach(request.relays.as_deref(), rmb_enc_key)?;
    let account = app.db.create_account(key, request.relays.as_deref(), rmb_enc_key).await;
    match account {
        Ok(account) => {
            tracing::info!(account = %account.twin_id, %key, "an account was made");
            Ok((StatusCode::CREATED, Json(account)))
        }
        Err(DbError::Duplicate) => {
            Err(LedgerError::conflict("account with this public key already exists"))
        }
        Err(e) => Err(LedgerError::database("failed to create account", &e)),
    }
}

/// One account, by its id or by its key.
#[utoipa::path(get, path = "/accounts", tag = "accounts", params(
    ("twin_id" = Option<u64>, Query, description = "The account's id"),
    ("public_key" = Option<String>, Query, description = "Base64 of its key, percent-encoded")),
    responses((status = 200, body = Account), (status = 400, body = Failure), (status = 404, body = Failure)))]
pub async fn get(
    State(app): State<Arc<App>>,
    Query(query): Query<HashMap<String, String>>,
) -> Reply<Json<Account>> {
    let given = |name| query.get(name).filter(|v| !v.is_empty());
    let found = match (given("twin_id"), given("public_key")) {
        (Some(_), Some(_)) => {
            return Err(LedgerError::bad_request("provide either twin_id or public_key, not both"));
        }
        (None, None) => {
            let text = "must provide either twin_id or public_key parameter";
            return Err(LedgerError::bad_request(text));
        }
        (Some(id), None) => {
            let id = parse_number(id).map_err(|_| LedgerError::bad_request("invalid twin ID"))?;
            app.db.account(AccountId(id)).await
        }
        // A plus that was not percent-encoded arrives as a space, which base64 has not.
        (None, Some(key)) => match base64_key::decode(&key.replace(' ', "+")) {
            Some(key) => app.db.account_by_key(&key).await,
            None => Ok(None),
        },
    };
    found
        .map_err(|e| LedgerError::database("failed to get account", &e))?
        .map(Json)
        .ok_or_else(|| LedgerError::not_found("account not found"))
}

/// Replaces where an account is reached; what is not given is emptied.
#[utoipa::path(patch, path = "/accounts/{twin_id}", tag = "accounts",
    params(("twin_id" = u64, Path)), request_body = AccountUpdate, responses(
    (status = 200, body = Acknowledged), (status = 400, body = Failure),
    (status = 401, body = Failure), (status = 404, body = Failure)))]
pub async fn update(
    State(app): State<Arc<App>>,
    caller: Authenticated,
    Path(id): Path<String>,
    body: Body,
) -> Reply<Json<Acknowledged>> {
    let id = parse_number(&id).map_err(|_| LedgerError::bad_request("invalid twin ID"))?;
    caller.must_be(AccountId(id))?;
    let update: AccountUpdate =
        body.json().map_err(|e| LedgerError::bad_request(format!("invalid request body: {e}")))?;
    let rmb_enc_key = update.rmb_enc_key.as_deref().unwrap_or_default();
    check_reach(update.relays.as_deref(), rmb_enc_key)?;
    let there = app
        .db
        .update_account(AccountId(id), update.relays.as_deref(), rmb_enc_key)
        .await
        .map_err(|e| LedgerError::database("failed to update account", &e))?;
    if there {
        Ok(Json(Acknowledged { message: "account updated successfully".into() }))
    } else {
        Err(LedgerError::not_found("account not found"))
    }
}

fn check_reach(relays: Option<&[String]>, rmb_enc_key: &str) -> Reply<()> {
    let relays = relays.unwrap_or_default();
    if relays.len() > MAX_RELAYS {
        return Err(LedgerError::bad_request(format!("relays: at most {MAX_RELAYS}")));
    }
    relays
        .iter()
        .map(String::as_str)
        .chain([rmb_enc_key])
        .try_for_each(|text| check_text(text, MAX_TEXT))
        .map_err(LedgerError::bad_request)
}
