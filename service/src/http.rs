//! Listening: the routes that every service has, errors as JSON, limits.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use http::{StatusCode, header};
use rhizome_model::{Code, Failure};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use utoipa::openapi::OpenApi;

/// No request of ours is larger than an envelope.
const MAX_BODY_BYTES: usize = rhizome_model::MAX_ENVELOPE_BYTES + 64 * 1024;

/// Requests under way may take this long after we were told to stop.
const GRACE: Duration = Duration::from_secs(2);

pub type ApiResult<T> = Result<T, ApiError>;

/// A failure on its way to a caller.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ApiError(#[from] pub Failure);

impl ApiError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Failure::new(code, message))
    }

    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("there is no {what}"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            tracing::warn!(code = %self.0.code, error = %self.0, "a request failed");
        }
        (status, Json(self.0)).into_response()
    }
}

macro_rules! rejections {
    ($($rejection:ty),*) => {$(
        impl From<$rejection> for ApiError {
            fn from(rejection: $rejection) -> Self {
                let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                    Code::TooLarge
                } else {
                    Code::BadRequest
                };
                Self::new(code, rejection.body_text())
            }
        }
    )*};
}
rejections!(JsonRejection, PathRejection, QueryRejection);

/// Whether the service can do its work, and if not, why.
pub type Health = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A service that is healthy while it runs.
pub fn always_healthy() -> Health {
    Arc::new(|| Ok(()))
}

/// Serves a router with what every service has, until the token is cancelled; requests under way
/// are finished if they end soon.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    api: OpenApi,
    health: Health,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    crate::metrics::init();
    let app = with_common_routes(router, api, health);
    // Without this a second small write, such as an event on a stream, waits 40 ms for an ACK.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection stays slow");
        }
    });
    let told = shutdown.clone();
    let late = async {
        told.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()) => served,
        // A stream has no end of its own; whoever reads it asks again.
        () = late => Ok(()),
    }
}

/// Adds `/openapi.json`, `/healthz`, `/metrics`, JSON for unknown routes, and the limits.
pub fn with_common_routes(router: Router, api: OpenApi, health: Health) -> Router {
    let api = Arc::new(api);
    router
        .route("/openapi.json", get(async move || Json(api.as_ref().clone())))
        .route("/healthz", get(async move || healthz(&health)))
        .route("/metrics", get(metrics))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_route)
        .layer(RequestBodyLimitLayer::new(MAX_BODY_BYTES))
        .layer(axum::middleware::map_response(too_large_in_words))
        .layer(CatchPanicLayer::custom(|_panic: Box<dyn std::any::Any + Send>| {
            ApiError::new(Code::Internal, "a fault of ours stopped this request; see the log")
                .into_response()
        }))
}

fn healthz(health: &Health) -> Response {
    match health() {
        Ok(()) => Json(serde_json::json!({ "status": "ok" })).into_response(),
        Err(reason) => ApiError::new(Code::Unavailable, reason).into_response(),
    }
}

/// The limit's own answer is plain text; ours carry a code.
async fn too_large_in_words(response: Response) -> Response {
    let json =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/json");
    if response.status() != StatusCode::PAYLOAD_TOO_LARGE || json {
        return response;
    }
    ApiError::new(Code::TooLarge, format!("at most {MAX_BODY_BYTES} bytes are taken"))
        .into_response()
}

async fn metrics() -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, crate::metrics::render()).into_response()
}

async fn no_such_route(method: http::Method, uri: http::Uri) -> ApiError {
    ApiError::new(
        Code::NoSuchRoute,
        format!("there is no {method} {}; /openapi.json lists what there is", uri.path()),
    )
}

/// Binds a port, or says what stands in the way.
pub async fn bind(address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => Failure::new(
            Code::PortTaken,
            format!("port {} is taken: stop what listens there or choose another", address.port()),
        ),
        _ => Failure::new(Code::Internal, format!("cannot listen on {address}: {e}")),
    })
}
