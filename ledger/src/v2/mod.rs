//! `/v2`: what registrar v4 does not have.
//!
//! ```text
//!   signed request ─▶ caller: signature, time ─▶ change: nonce, account ─┐ one transaction:
//!                                       rules of the resource ───────────┤ nonce, change, revisions,
//!                                                                        ┘ audit log
//!   reads: open to everybody; statements are signed with the ledger's key
//! ```
//!
//! A refusal changes nothing and uses no nonce up. One file per resource.

mod accounts;
mod audit;
mod change;
mod coordinators;
mod farms;
mod nodes;
mod statements;
mod usage;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse, Response};
use rhizome_model::{Code, Failure};
use rhizome_service::ApiError;
use serde::de::DeserializeOwned;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::db::{DbError, Page};

const DEFAULT_PAGE_SIZE: u64 = 50;
const MAX_PAGE_SIZE: u64 = 1000;

pub fn resources() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(statements::about))
        .routes(routes!(statements::changes))
        .routes(routes!(statements::one))
        .routes(routes!(accounts::get))
        .routes(routes!(accounts::change_keys))
        .routes(routes!(farms::get))
        .routes(routes!(farms::set_access))
        .routes(routes!(farms::grant))
        .routes(routes!(farms::revoke))
        .routes(routes!(farms::trust, farms::distrust))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::get))
        .routes(routes!(nodes::approve))
        .routes(routes!(nodes::report))
        .routes(routes!(usage::list))
        .routes(routes!(usage::tell))
        .routes(routes!(coordinators::list))
        .routes(routes!(coordinators::register, coordinators::withdraw))
        .routes(routes!(audit::list))
}

/// Why something was not done.
#[derive(Debug)]
pub struct Refusal(Failure);

pub type Reply<T> = Result<T, Refusal>;

impl Refusal {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Failure::new(code, message))
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, message)
    }

    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("there is no {what}"))
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl From<DbError> for Refusal {
    fn from(error: DbError) -> Self {
        tracing::error!(%error, "the database failed");
        Self::new(Code::Internal, "the ledger's database failed; its log says why")
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error.0)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        ApiError(self.0).into_response()
    }
}

/// A path whose parts are ids.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
pub struct Path<T>(pub T);

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub struct Query<T>(pub T);

/// A body of JSON, whatever its content type says.
fn read<T: DeserializeOwned>(body: &[u8]) -> Reply<T> {
    serde_json::from_slice(body)
        .map_err(|e| Refusal::bad_request(format!("the request's body: {e}")))
}

/// The page of a list that was asked for, from 1.
fn page(number: Option<u64>, size: Option<u64>) -> Page {
    let size = size.unwrap_or(DEFAULT_PAGE_SIZE).min(MAX_PAGE_SIZE);
    let offset = number.unwrap_or(1).max(1).saturating_sub(1).saturating_mul(size);
    let column = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    Page { limit: column(size), offset: column(offset) }
}

/// Numbers in the database have 63 bits.
fn in_range(numbers: impl IntoIterator<Item = u64>) -> Reply<()> {
    if numbers.into_iter().all(|n| i64::try_from(n).is_ok()) {
        Ok(())
    } else {
        Err(Refusal::bad_request(format!("no amount is more than {}", i64::MAX)))
    }
}
