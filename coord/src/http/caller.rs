//! Who calls: the key that signed the request, and its account.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::request::Parts;
use rhizome_model::api::AccountView;
use rhizome_model::{AccountId, Code, KeyId};
use rhizome_service::{ApiError, ApiResult, clock};

use super::App;

/// No signed call has a larger body: envelopes go elsewhere.
const MAX_CALL_BYTES: usize = 64 * 1024;

/// A key that signed the request.
#[derive(Clone, Copy)]
pub struct Signer(pub KeyId);

/// An account whose key signed the request.
#[derive(Clone)]
pub struct Caller {
    pub account: AccountView,
}

/// The body, whole: its digest was signed.
#[derive(Clone)]
pub struct SignedBody(pub Bytes);

/// Lets only signed requests pass.
pub async fn authenticate(
    State(app): State<App>,
    request: Request,
    next: Next,
) -> ApiResult<Response> {
    let (mut parts, body) = request.into_parts();
    let body = to_bytes(body, MAX_CALL_BYTES).await.map_err(|_| {
        ApiError::new(Code::TooLarge, format!("at most {MAX_CALL_BYTES} bytes are taken here"))
    })?;
    let (path, query) = (parts.uri.path(), parts.uri.query());
    let now = clock::now_secs();
    let key = app.verifier.verify(&parts.method, path, query, &parts.headers, &body, now)?;
    parts.extensions.insert(Signer(key));
    parts.extensions.insert(SignedBody(body.clone()));
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> ApiResult<Self> {
        let unsigned = || ApiError::new(Code::Unauthenticated, "the request is not signed");
        let Signer(key) = *parts.extensions.get::<Signer>().ok_or_else(unsigned)?;
        let account = app.known.by_key(&key).await?.filter(|a| a.id != AccountId(0));
        let account = account.ok_or_else(|| {
            let message =
                format!("no account has the key {key}; register it with the ledger first");
            ApiError::new(Code::Unauthenticated, message)
        })?;
        Ok(Self { account })
    }
}
