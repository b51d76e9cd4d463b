//! Listening: the routes that every service has, errors as JSON, limits.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rhizome_model::{Code, Failure};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use utoipa::openapi::OpenApi;

/// No request of ours is larger than an envelope.
const MAX_BODY_BYTES: usize = rhizome_model::MAX_ENVELOPE_BYTES + 64 * 1024;

/// Whoever sends no whole head of a request within this is cut off; so is a connection that rests.
const HEADERS_WITHIN: Duration = Duration::from_secs(20);
/// After a connection that could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

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
    let app = TowerToHyperService::new(with_common_routes(router, api, health));
    let mut connections = http1::Builder::new();
    connections.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    let open = GracefulShutdown::new();
    loop {
        let stream = tokio::select! {
            stream = accept(&listener) => stream,
            () = shutdown.cancelled() => break,
        };
        let connection = connections.serve_connection(TokioIo::new(stream), app.clone());
        let connection = open.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
    // A stream has no end of its own; whoever reads it asks again.
    let _ = tokio::time::timeout(GRACE, open.shutdown()).await;
    Ok(())
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without this a second small write, such as an event on a stream, waits 40 ms for
                // an ACK.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection stays slow");
                }
                return stream;
            }
            // It went before it was taken.
            Err(error) if is_about_the_connection(&error) => {}
            // There may be too many of them just now.
            Err(error) => {
                tracing::error!(%error, "no connection can be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

fn is_about_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_never_ends_the_head_of_a_request_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let api = OpenApi::default();
        let serving =
            tokio::spawn(serve(listener, Router::new(), api, always_healthy(), stop.clone()));

        let mut quick = TcpStream::connect(address).await.unwrap();
        quick.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 15];
        quick.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");

        let begun = Instant::now();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n").await.unwrap();
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "");
        let passed = begun.elapsed();
        assert!(passed >= HEADERS_WITHIN && passed < HEADERS_WITHIN * 2, "{passed:?}");

        stop.cancel();
        serving.await.unwrap().unwrap();
    }
}
