//! The thin client: one connection per call, and no call without an end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

use super::API;
use crate::vm::door;
use crate::vm::fault::{Answer, Fault, Kind, Refusal};

/// Its answers are small; what it says of a machine with many devices has some 100 KiB.
const MAX_ANSWER: usize = 4 << 20;
/// Of an answer that is no JSON, this much is shown.
const SHOWN: usize = 200;

pub(super) struct Client {
    dir: PathBuf,
}

impl Client {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The body of the answer; of a refusal, what was said.
    pub fn call(
        &self,
        method: &Method,
        path: &str,
        body: Option<Vec<u8>>,
        until: Instant,
    ) -> Answer<Bytes> {
        let begin = Instant::now();
        let stream = door::open(&self.dir, API, until)?;
        let strange = |e: io::Error| Fault::Strange(e.to_string());
        stream.set_nonblocking(true).map_err(strange)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(strange)?;
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let answer = runtime.block_on(async {
            tokio::time::timeout(left, exchange(stream, request(method, path, body)?))
                .await
                .unwrap_or_else(|_| Err(Fault::Hangs(begin.elapsed())))
        });
        // The connection's task ends with it.
        runtime.shutdown_background();
        let (status, body) = answer?;
        if status.is_success() { Ok(body) } else { Err(Fault::Refused(refusal(status, &body))) }
    }
}

fn request(method: &Method, path: &str, body: Option<Vec<u8>>) -> Answer<Request<Full<Bytes>>> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("/api/v1/{path}"))
        .header("host", "localhost")
        .header("accept", "application/json");
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    request.body(Full::from(body.unwrap_or_default())).map_err(|e| Fault::Strange(e.to_string()))
}

async fn exchange(
    stream: std::os::unix::net::UnixStream,
    request: Request<Full<Bytes>>,
) -> Answer<(StatusCode, Bytes)> {
    let broken = |e: hyper::Error| Fault::Broken(with_causes(&e));
    let stream =
        tokio::net::UnixStream::from_std(stream).map_err(|e| Fault::Strange(e.to_string()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // Its errors are those of the call.
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
    let body = Limited::new(body, MAX_ANSWER)
        .collect()
        .await
        .map_err(|e| Fault::Broken(with_causes(e.as_ref())))?;
    Ok((parts.status, body.to_bytes()))
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn refusal(status: StatusCode, body: &[u8]) -> Refusal {
    let chain: Vec<String> = serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).trim().to_owned();
        if text.is_empty() { Vec::new() } else { vec![text] }
    });
    let says = |words: &[&str]| chain.iter().any(|link| words.iter().any(|w| link.contains(w)));
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::CONFLICT => Kind::Exists,
        StatusCode::BAD_REQUEST => Kind::Invalid,
        StatusCode::METHOD_NOT_ALLOWED => Kind::WrongState,
        _ if says(&["VM is already created"]) => Kind::Exists,
        _ if says(&[
            "VM is not running",
            "VM is not created",
            "InvalidStateTransition",
            "VM is not booted",
        ]) =>
        {
            Kind::WrongState
        }
        _ => Kind::Failed,
    };
    Refusal { kind, status: Some(status.as_u16()), chain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_known_by_its_status_or_its_words() {
        let kind = |status: u16, body: &str| {
            refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes()).kind
        };
        assert_eq!(kind(404, r#"["Not Found"]"#), Kind::NotFound);
        assert_eq!(kind(409, "[]"), Kind::Exists);
        assert_eq!(kind(400, "no JSON at all"), Kind::Invalid);
        assert_eq!(kind(500, r#"["Error from API","VM is already created"]"#), Kind::Exists);
        assert_eq!(kind(500, r#"["x","VM is not running"]"#), Kind::WrongState);
        assert_eq!(
            kind(500, r#"["x","InvalidStateTransition(Paused, Paused)"]"#),
            Kind::WrongState
        );
        assert_eq!(kind(500, r#"["x","No such file"]"#), Kind::Failed);
    }

    #[test]
    fn a_refusal_shows_its_chain_or_its_status() {
        let shown =
            |body: &str| refusal(StatusCode::INTERNAL_SERVER_ERROR, body.as_bytes()).to_string();
        assert_eq!(
            shown(r#"["The VM could not boot","no disk"]"#),
            "The VM could not boot: no disk"
        );
        assert_eq!(shown("plain"), "plain");
        assert_eq!(shown(""), "status 500");
    }
}
