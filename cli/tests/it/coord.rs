//! A coord that remembers what it is given and can be told to fail: for how the command line talks
//! and waits. Whole deployments against the real one are tests of the workspace.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use rhizome_identity::http_signature::Verifier;
use rhizome_identity::{SigningKey, verify_signatures};
use rhizome_model::{Document, Envelope};
use serde_json::{Value, json};

/// How one call for events is answered.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// So many events, then the connection ends.
    Cut(usize),
    /// 503.
    Away,
}

#[derive(Default)]
pub struct Memory {
    /// What happens after a submission; an event without a `node` is given node 1.
    pub script: Vec<Value>,
    pub documents: Vec<Value>,
    pub events: Vec<Value>,
    /// For the next calls for events; afterwards all are given and the connection stays.
    pub answers: VecDeque<Answer>,
    /// `METHOD path` of all calls.
    pub calls: Vec<String>,
    pub unsigned: Vec<String>,
    pub has_account: bool,
}

pub struct Coord {
    pub url: String,
    pub node: SigningKey,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    memory: Mutex<Memory>,
    verifier: Verifier,
    node: SigningKey,
}

impl Coord {
    pub fn start(script: Vec<Value>) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let node = SigningKey::generate().unwrap();
        let memory = Memory { script, has_account: true, ..Memory::default() };
        let shared = Arc::new(Shared {
            memory: Mutex::new(memory),
            verifier: Verifier::new(),
            node: node.clone(),
        });
        let app = Router::new().fallback(answer).with_state(shared.clone());
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(anywhere)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { url, node, shared, _runtime: runtime }
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap()
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let (path, query) = (parts.uri.path(), parts.uri.query());
    let now = rhizome_service::clock::now_secs();
    let signer =
        shared.verifier.verify(&parts.method, path, query, &parts.headers, &body, now).ok();
    let mut memory = shared.memory.lock().unwrap();
    let call = format!("{} {path}", parts.method);
    memory.calls.push(call.clone());
    if signer.is_none() && call != "POST /v1/envelopes" {
        memory.unsigned.push(call.clone());
    }
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok());
    match call.as_str() {
        "POST /v1/envelopes" => submit(&mut memory, &body),
        "GET /v1/deployments/1/demo" => memory.view(),
        "GET /v1/deployments/1/demo/events" => {
            let after = header("last-event-id").and_then(|n| n.parse().ok()).unwrap_or(0);
            memory.stream(after)
        }
        "POST /v1/placements" => reply(200, &json!({ "nodes": [node(&shared.node)] })),
        "GET /v1/nodes/1" => reply(200, &node(&shared.node)),
        "GET /v1/deployments/1/demo/resources/web/logs" => chunks(&[
            json!({ "stream": "stdout", "data": "b25lCg==" }),
            json!({ "stream": "exit", "result": null }),
        ]),
        "POST /v1/deployments/1/demo/resources/web/exec" => {
            let request: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(request["command"], json!(["ls", "-l", "--json"]));
            chunks(&[
                json!({ "stream": "stdout", "data": "b25lCg==" }),
                json!({ "stream": "stderr", "data": "dHdvCg==" }),
                json!({ "stream": "exit", "result": { "exit_code": 7 } }),
            ])
        }
        account if account.starts_with("GET /v1/accounts/") && memory.has_account => {
            reply(200, &json!({ "id": 1, "key": signer.unwrap() }))
        }
        account if account.starts_with("GET /v1/accounts/") => {
            reply(404, &json!({ "error": "no account", "code": "unknown_account" }))
        }
        _ => reply(404, &json!({ "error": "there is no such thing", "code": "not_found" })),
    }
}

fn submit(memory: &mut Memory, bytes: &Bytes) -> Response {
    let envelope = Envelope::from_json(bytes).unwrap();
    verify_signatures(&envelope).unwrap();
    let document =
        Document::from_payload(&envelope.payload_type, &envelope.payload).unwrap().unwrap();
    let version = document.version();
    memory.documents.push(serde_json::from_slice(&envelope.payload).unwrap());
    let after = memory.events.len();
    let begin = json!({ "event": "phase", "phase": "pending", "node": null });
    for what in std::iter::once(begin).chain(memory.script.clone()) {
        let mut event = json!({ "at": 0, "deployment": "1/demo", "version": version, "node": 1 });
        event.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
        memory.events.push(event);
    }
    let submitted = json!({
        "deployment": "1/demo", "version": version, "phase": "pending", "nodes": [1],
        "after": after,
    });
    reply(202, &submitted)
}

impl Memory {
    fn view(&self) -> Response {
        let Some(document) = self.documents.last() else {
            return reply(404, &json!({ "error": "there is no deployment", "code": "not_found" }));
        };
        let mut phases = self.events.iter().filter(|e| e["event"] == "phase" && e["node"] == 1);
        let last = phases.next_back().cloned().unwrap_or_else(|| json!({ "phase": "pending" }));
        let status = json!({ "state": "running", "address": "5d3::1" });
        let web = json!({ "name": "web", "kind": "machine", "spec": {}, "status": status });
        let task = json!({
            "deployment": "1/demo", "version": document["version"], "node": 1,
            "phase": last["phase"], "failure": last.get("failure"),
            "outputs": last.get("outputs").unwrap_or(&json!({})), "resources": [web],
            "reserved": { "cpu": 1, "memory": 0, "disk": 0 },
        });
        let view = json!({
            "deployment": "1/demo", "version": document["version"], "phase": last["phase"],
            "submitted_at": 0, "updated_at": 0, "tasks": [task],
        });
        reply(200, &view)
    }

    fn stream(&mut self, after: usize) -> Response {
        let (count, stays) = match self.answers.pop_front() {
            Some(Answer::Away) => {
                return reply(503, &json!({ "error": "starting", "code": "unavailable" }));
            }
            Some(Answer::Cut(count)) => (count, false),
            None => (usize::MAX, true),
        };
        let numbered = (1..).zip(&self.events).skip(after).take(count);
        let text: String = numbered.map(|(n, e)| format!("id: {n}\ndata: {e}\n\n")).collect();
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(text)]);
        let rest = futures_util::stream::pending();
        let kind = [("content-type", "text/event-stream")];
        if stays {
            let body = Body::from_stream(futures_util::StreamExt::chain(first, rest));
            (kind, body).into_response()
        } else {
            (kind, Body::from_stream(first)).into_response()
        }
    }
}

fn node(key: &SigningKey) -> Value {
    json!({
        "id": 1, "farm": 1, "key": key.key_id(), "address": "5d3::2", "online": true,
        "reachable": true,
    })
}

fn reply(status: u16, body: &Value) -> Response {
    (http::StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

fn chunks(chunks: &[Value]) -> Response {
    let lines: String = chunks.iter().map(|c| format!("{c}\n")).collect();
    ([("content-type", "application/x-ndjson")], lines).into_response()
}
