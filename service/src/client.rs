//! Calling: JSON over HTTP with failures as the other side says them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eventsource_stream::{Event as SseEvent, Eventsource};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, Method};
pub use reqwest::Response;
use rhizome_model::{Code, Failure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Answers take no longer than this; streams may last.
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that rests is given up before a service of ours cuts it off.
const IDLE: Duration = Duration::from_secs(10);

/// Makes the headers that authenticate a request: method, path, query, body.
pub type Signer = Arc<dyn Fn(&Method, &str, Option<&str>, &[u8]) -> HeaderMap + Send + Sync>;

/// A client of one service.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    /// What messages call the service, for example "coord".
    name: &'static str,
    signer: Option<Signer>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("name", &self.name).field("base", &self.base).finish()
    }
}

impl Client {
    /// `base` is such as `http://127.0.0.1:8080`.
    pub fn new(name: &'static str, base: &str) -> Result<Self, Failure> {
        Self::build(name, base, reqwest::Client::builder())
    }

    /// A service on a unix socket.
    pub fn unix(name: &'static str, socket: PathBuf) -> Result<Self, Failure> {
        Self::build(name, "http://localhost", reqwest::Client::builder().unix_socket(socket))
    }

    fn build(
        name: &'static str,
        base: &str,
        builder: reqwest::ClientBuilder,
    ) -> Result<Self, Failure> {
        let http = builder
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE)
            .no_proxy()
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| Failure::new(Code::Internal, format!("no HTTP client: {}", chain(&e))))?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), name, signer: None })
    }

    /// Signs every request from now on.
    #[must_use]
    pub fn signed(mut self, signer: Signer) -> Self {
        self.signer = Some(signer);
        self
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.json(self.call(Method::GET, path, Vec::new(), HeaderMap::new(), Some(TIMEOUT)).await?)
            .await
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|e| Failure::new(Code::Internal, format!("cannot write the request: {e}")))?;
        self.post_bytes(path, body).await
    }

    /// Replaces what is at a path.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|e| Failure::new(Code::Internal, format!("cannot write the request: {e}")))?;
        self.json(self.call(Method::PUT, path, body, HeaderMap::new(), Some(TIMEOUT)).await?).await
    }

    /// Sends bytes as they are: an envelope is never written anew.
    pub async fn post_bytes<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        self.json(self.call(Method::POST, path, body, HeaderMap::new(), Some(TIMEOUT)).await?).await
    }

    /// The service's events from `path`, after the one with the id `after`.
    pub async fn events(
        &self,
        path: &str,
        after: Option<&str>,
    ) -> Result<impl Stream<Item = Result<SseEvent, Failure>> + Send + use<>, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::ACCEPT, http::HeaderValue::from_static("text/event-stream"));
        if let Some(id) = after.and_then(|id| id.parse().ok()) {
            headers.insert("last-event-id", id);
        }
        let response = self.call(Method::GET, path, Vec::new(), headers, None).await?;
        let name = self.name;
        Ok(response.bytes_stream().eventsource().map(move |event| {
            event.map_err(|e| {
                Failure::new(Code::Unavailable, format!("{name} stopped sending: {e}"))
            })
        }))
    }

    /// A call whose answer is a stream of bytes, or whose headers the caller brings itself.
    /// An answer other than 2xx is the failure that it carries.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        mut headers: HeaderMap,
        timeout: Option<Duration>,
    ) -> Result<Response, Failure> {
        let (route, query) = match path.split_once('?') {
            Some((route, query)) => (route, Some(query)),
            None => (path, None),
        };
        if let Some(signer) = &self.signer {
            headers.extend(signer(&method, route, query, &body));
        }
        if !body.is_empty() && !headers.contains_key(http::header::CONTENT_TYPE) {
            headers.insert(
                http::header::CONTENT_TYPE,
                http::HeaderValue::from_static("application/json"),
            );
        }
        let mut request =
            self.http.request(method, format!("{}{path}", self.base)).headers(headers).body(body);
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.failure(response).await)
        }
    }

    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let bytes = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::new(
                Code::Internal,
                format!("{} answered what we do not understand: {e}", self.name),
            )
        })
    }

    async fn failure(&self, response: Response) -> Failure {
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        serde_json::from_slice(&body).unwrap_or_else(|_| {
            let code = if status.is_server_error() { Code::Unavailable } else { Code::BadRequest };
            let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            Failure::new(code, format!("{} answered {status}: {text}", self.name))
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        // reqwest's own text repeats the URL; its source says what went wrong.
        let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), chain);
        let message = format!("cannot reach {} at {}: {cause}", self.name, self.base);
        Failure::new(Code::Unavailable, message)
    }
}

fn chain(error: &(dyn std::error::Error + '_)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_that_is_not_there_is_unavailable() {
        let client = Client::new("coord", "http://127.0.0.1:1").unwrap();
        let failure = client.get::<serde_json::Value>("/healthz").await.unwrap_err();
        assert_eq!(failure.code, Code::Unavailable);
        assert!(failure.message.contains("cannot reach coord at http://127.0.0.1:1"), "{failure}");
    }

    #[tokio::test]
    async fn failures_travel_whole() {
        let listener = crate::http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let stop = tokio_util::sync::CancellationToken::new();
        let router = axum::Router::new().route(
            "/refuse",
            axum::routing::get(async || {
                crate::ApiError(Failure::new(Code::Replayed, "seen before").with_detail("why"))
            }),
        );
        let api = utoipa::openapi::OpenApiBuilder::new().build();
        let server = tokio::spawn(crate::serve(
            listener,
            router,
            api,
            crate::http::always_healthy(),
            stop.clone(),
        ));
        let client = Client::new("coord", &base).unwrap();
        let failure = client.get::<serde_json::Value>("/refuse").await.unwrap_err();
        assert_eq!(failure, Failure::new(Code::Replayed, "seen before").with_detail("why"));
        let failure = client.get::<serde_json::Value>("/nowhere").await.unwrap_err();
        assert_eq!(failure.code, Code::NoSuchRoute);
        let health: serde_json::Value = client.get("/healthz").await.unwrap();
        assert_eq!(health["status"], "ok");
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
