//! Refusals in the registrar's words: `{"error": text, "code": word}`.
//!
//! The registrar's statuses are not always those of our codes: whoever is known but may not do
//! something gets 401, as v4 has it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rhizome_model::{Code, Failure};
use serde::Serialize;

use crate::db::DbError;

#[derive(Debug)]
pub struct LedgerError {
    status: StatusCode,
    failure: Failure,
    /// The ledger's clock, where a client's clock is the problem.
    server_time: Option<i64>,
}

pub type Reply<T> = Result<T, LedgerError>;

impl LedgerError {
    fn new(status: StatusCode, code: Code, text: impl Into<String>) -> Self {
        Self { status, failure: Failure::new(code, text), server_time: None }
    }

    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::BadRequest, text)
    }

    pub fn too_large(text: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge, text)
    }

    pub fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, Code::BadRequest, "the body did not come in time")
    }

    pub fn unauthenticated(text: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Code::Unauthenticated, text)
    }

    pub fn signature_failed() -> Self {
        Self::unauthenticated("Signature verification failed: signature verification failed")
    }

    /// Somebody whom we know does what is another's to do.
    pub fn not_owner() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Code::Unauthorised, "not authorized")
    }

    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::NotFound, text)
    }

    pub fn conflict(text: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, Code::Conflict, text)
    }

    /// The database failed; `text` is what v4 says then. The cause is for the log.
    pub fn database(text: &'static str, error: &DbError) -> Self {
        tracing::error!(%error, "{text}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, text)
    }

    #[must_use]
    pub fn with_server_time(mut self, secs: i64) -> Self {
        self.server_time = Some(secs);
        self.failure = self.failure.with_detail(format!(
            "the ledger's clock says {secs} in Unix seconds; set the caller's clock right"
        ));
        self
    }
}

impl IntoResponse for LedgerError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            #[serde(flatten)]
            failure: Failure,
            #[serde(skip_serializing_if = "Option::is_none")]
            server_time: Option<i64>,
        }
        let body = Body { failure: self.failure, server_time: self.server_time };
        (self.status, Json(body)).into_response()
    }
}
