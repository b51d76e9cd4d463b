//! A supervisor that remembers what it took and what it said. It checks who calls, follows the
//! rules of versions, and can be told to fail, to hang, and to forget.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event as SseEvent, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, StatusCode};
use rhizome_identity::SigningKey;
use rhizome_identity::http_signature::Verifier;
use rhizome_model::api::{CapacityView, NodeStatus, ResourceView, TaskView};
use rhizome_model::{
    AccountId, Bytes as Size, Capacity, Code, DeploymentId, DesiredResource, Document, Envelope,
    Event, Failure, FarmId, Name, NodeFacts, NodeId, Phase, Version, What, WorkloadKind,
};
use rhizome_service::{ApiError, ApiResult, clock};
use serde_json::json;
use tokio::sync::watch;

use super::{Place, coord_key};

/// What becomes of a call.
#[derive(Debug, Clone)]
pub enum Mood {
    Well,
    Fails(Failure),
    /// It takes the envelope and never answers.
    TakesAndHangs,
    Hangs,
}

/// What the node knows; it survives the supervisor.
#[derive(Default)]
pub struct Memory {
    pub tasks: BTreeMap<DeploymentId, (TaskView, Vec<u8>)>,
    /// Events by their id, beginning with `first`.
    events: VecDeque<Event>,
    first: u64,
    /// Every envelope that came.
    pub received: Vec<Vec<u8>>,
    /// What becomes of the next envelopes.
    pub moods: VecDeque<Mood>,
    /// Scripts wait in `running` until this is false.
    pub slow: bool,
    /// Scripts fail.
    pub broken: bool,
    pub free_mib: u64,
    /// Lines of calls that went through to here, and who signed them.
    pub calls: Vec<(String, String)>,
}

pub struct Node {
    pub id: NodeId,
    pub memory: Mutex<Memory>,
    news: watch::Sender<()>,
    verifier: Verifier,
}

type Shared = Arc<Node>;

pub struct FakeSupervisor {
    pub node: Shared,
    pub place: Place,
}

impl FakeSupervisor {
    pub fn new(id: NodeId) -> Self {
        let memory = Mutex::new(Memory { first: 1, free_mib: 1000, ..Memory::default() });
        let node =
            Arc::new(Node { id, memory, news: watch::channel(()).0, verifier: Verifier::new() });
        let shared = node.clone();
        let place = Place::new(move |listener| {
            let router = routes(shared.clone());
            let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
            Box::pin(async move { axum::serve(listener, router).await.unwrap() })
        });
        Self { node, place }
    }

    pub fn key(&self) -> SigningKey {
        key_of(self.node.id)
    }

    pub fn with<T>(&self, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(&mut self.node.memory.lock().unwrap())
    }

    pub fn received(&self) -> Vec<Vec<u8>> {
        self.with(|m| m.received.clone())
    }

    pub fn next(&self, moods: impl IntoIterator<Item = Mood>) {
        self.with(|m| m.moods.extend(moods));
    }

    /// All disks are lost: tasks, events, and the count of events.
    pub fn forgets_everything(&self) {
        self.with(|m| {
            m.tasks.clear();
            m.events.clear();
            m.first = 1;
        });
    }

    /// Old events are kept no longer.
    pub fn trims(&self) {
        self.with(|m| {
            m.first += m.events.len() as u64;
            m.events.clear();
        });
    }

    /// Says something about a deployment.
    pub fn says(&self, id: &str, version: u64, what: What) {
        self.with(|m| m.say(&id.parse().unwrap(), Version(version), what));
        self.node.news.send_replace(());
    }

    /// Scripts that wait go on.
    pub fn goes_on(&self) {
        self.with(|m| {
            m.slow = false;
            let waiting: Vec<_> = m
                .tasks
                .values()
                .filter(|(t, _)| t.phase == Phase::Running)
                .map(|(t, _)| t.deployment.clone())
                .collect();
            for id in waiting {
                m.finish(&id);
            }
        });
        self.node.news.send_replace(());
    }
}

fn key_of(id: NodeId) -> SigningKey {
    SigningKey::from_seed([100 + u8::try_from(id.0).unwrap(); 32])
}

impl Memory {
    fn say(&mut self, id: &DeploymentId, version: Version, what: What) {
        let event =
            Event { at: clock::now_ms(), deployment: id.clone(), version, node: None, what };
        self.events.push_back(event);
    }

    fn moves(&mut self, id: &DeploymentId, phase: Phase, failure: Option<Failure>) {
        let task = &mut self.tasks.get_mut(id).unwrap().0;
        task.phase = phase;
        task.failure = failure.clone();
        let version = task.version;
        let outputs = (phase == Phase::Ready).then(|| json!({ "ok": version.0 }));
        if phase == Phase::Ready {
            task.outputs = [("ok".to_owned(), json!(version.0))].into();
        }
        self.say(id, version, What::Phase { phase, failure, outputs });
    }

    /// As the real one: the same again is its task, an older version is refused.
    fn take(&mut self, node: NodeId, bytes: &[u8]) -> Result<TaskView, Failure> {
        let envelope = Envelope::from_json(bytes).unwrap();
        let document =
            Document::from_payload(&envelope.payload_type, &envelope.payload).unwrap().unwrap();
        let id = document.deployment_id();
        let current = self.tasks.get(&id).cloned();
        match &document {
            Document::Deployment(d) => {
                if let Some((task, same)) = &current {
                    if same == bytes {
                        return Ok(task.clone());
                    }
                    if task.version >= d.version {
                        return Err(Failure::new(Code::StaleVersion, "older than what is here"));
                    }
                }
                let task = TaskView {
                    deployment: id.clone(),
                    version: d.version,
                    node,
                    phase: Phase::Pending,
                    failure: None,
                    outputs: BTreeMap::new(),
                    resources: vec![volume()],
                    reserved: Capacity { disk: Size::mib(1), ..Capacity::default() },
                    waiting_for: None,
                };
                self.tasks.insert(id.clone(), (task, bytes.to_vec()));
                self.moves(&id, Phase::Accepted, None);
                let taken = self.tasks[&id].0.clone();
                self.moves(&id, Phase::Running, None);
                if !self.slow {
                    self.finish(&id);
                }
                Ok(taken)
            }
            Document::Delete(d) => {
                let (mut task, _) =
                    current.ok_or_else(|| Failure::new(Code::NotFound, "nothing of that name"))?;
                if task.version != d.version {
                    return Err(Failure::new(Code::StaleVersion, "not the version that is here"));
                }
                self.moves(&id, Phase::Deleting, None);
                task.phase = Phase::Deleting;
                self.moves(&id, Phase::Deleted, None);
                self.tasks.remove(&id);
                Ok(task)
            }
            Document::Operation(_) => Err(Failure::new(Code::BadRequest, "not in these tests")),
        }
    }

    fn finish(&mut self, id: &DeploymentId) {
        let version = self.tasks[id].0.version;
        let resource: Name = "data".parse().unwrap();
        let kind = WorkloadKind::Volume;
        self.say(id, version, What::Declared { resource: resource.clone(), kind, line: 1 });
        if self.broken {
            let failure = Failure::new(Code::ScriptFailed, "it failed");
            self.moves(id, Phase::Failed, Some(failure));
        } else {
            self.say(id, version, What::Ready { resource, kind, status: json!({}), done: None });
            self.moves(id, Phase::Ready, None);
        }
    }
}

fn volume() -> ResourceView {
    let resource = DesiredResource {
        name: "data".parse().unwrap(),
        kind: WorkloadKind::Volume,
        spec: json!({ "size": 1 << 20 }),
        line: 1,
    };
    ResourceView { resource, status: None }
}

fn routes(node: Shared) -> Router {
    let ours = Router::new()
        .route("/v1/node", get(status))
        .route("/v1/tasks", get(tasks))
        .route("/v1/tasks/{account}/{name}", get(task))
        .route("/v1/events", get(events))
        .route_layer(from_fn_with_state(node.clone(), only_coord));
    Router::new()
        .route("/v1/envelopes", post(submit))
        .route("/healthz", get(async || Json(json!({ "status": "ok" }))))
        .route("/v1/deployments/{account}/{name}/resources/{resource}/logs", get(logs))
        .route("/v1/deployments/{account}/{name}/resources/{resource}/exec", post(exec))
        .route("/v1/nodes/{node}/{*rest}", any(operate))
        .merge(ours)
        .with_state(node)
}

async fn only_coord(
    State(node): State<Shared>,
    request: Request,
    next: Next,
) -> ApiResult<Response> {
    let (path, query) = (request.uri().path(), request.uri().query());
    let (headers, now) = (request.headers(), clock::now_secs());
    let key = node.verifier.verify(request.method(), path, query, headers, b"", now)?;
    assert_eq!(key, coord_key().key_id());
    Ok(next.run(request).await)
}

async fn submit(
    State(node): State<Shared>,
    body: Bytes,
) -> ApiResult<(StatusCode, Json<TaskView>)> {
    let (taken, hangs) = {
        let mut memory = node.memory.lock().unwrap();
        memory.received.push(body.to_vec());
        match memory.moods.pop_front().unwrap_or(Mood::Well) {
            Mood::Well => (memory.take(node.id, &body), false),
            Mood::Fails(failure) => (Err(failure), false),
            Mood::TakesAndHangs => (memory.take(node.id, &body), true),
            Mood::Hangs => (Err(Failure::new(Code::Internal, "")), true),
        }
    };
    node.news.send_replace(());
    if hangs {
        std::future::pending::<()>().await;
    }
    Ok((StatusCode::ACCEPTED, Json(taken?)))
}

async fn status(State(node): State<Shared>) -> Json<NodeStatus> {
    let memory = Size::mib(node.memory.lock().unwrap().free_mib);
    let free = Capacity { memory, ..Capacity::default() };
    let key = key_of(node.id);
    Json(NodeStatus {
        facts: NodeFacts {
            id: node.id,
            farm: FarmId(1),
            address: key.mycelium_address(),
            capacity: free,
        },
        key: key.key_id(),
        usage: CapacityView { total: free, reserved: Capacity::default(), free },
        pools: Vec::new(),
        network: None,
    })
}

/// What is about the node's jobs and runners: it says what it was asked, and turns accounts other
/// than the first away.
async fn operate(State(node): State<Shared>, request: Request) -> ApiResult<Response> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 100_000).await.unwrap();
    note_call(&node, &parts, &body)?;
    let (_, key) = node.memory.lock().unwrap().calls.last().cloned().unwrap();
    if key != super::User::new(1).key.key_id().to_string() {
        return Err(ApiError::new(Code::Unauthorised, "only the owner of the farm"));
    }
    let asked = json!({ "asked": parts.uri.path(), "body": String::from_utf8_lossy(&body) });
    Ok(Json(asked).into_response())
}

async fn tasks(State(node): State<Shared>) -> Json<Vec<TaskView>> {
    Json(node.memory.lock().unwrap().tasks.values().map(|(t, _)| t.clone()).collect())
}

async fn task(
    State(node): State<Shared>,
    Path((account, name)): Path<(AccountId, Name)>,
) -> ApiResult<Json<TaskView>> {
    let id = DeploymentId { account, name };
    let memory = node.memory.lock().unwrap();
    let task = memory.tasks.get(&id).map(|(t, _)| t.clone());
    task.map(Json).ok_or_else(|| ApiError::not_found(id))
}

async fn events(
    State(node): State<Shared>,
    headers: HeaderMap,
) -> Sse<impl Stream<Item = Result<SseEvent, Infallible>>> {
    let after: Option<u64> =
        headers.get("last-event-id").map(|id| id.to_str().unwrap().parse().unwrap());
    let first = node.memory.lock().unwrap().first;
    let trimmed = after.is_some_and(|a| a + 1 < first);
    let news = node.news.subscribe();
    let start = (node, news, after.unwrap_or(0).max(first - 1));
    let live = stream::unfold(start, async |(node, mut news, last)| {
        loop {
            news.borrow_and_update();
            let next = {
                let memory = node.memory.lock().unwrap();
                let at = (last + 1).checked_sub(memory.first);
                at.and_then(|at| memory.events.get(usize::try_from(at).unwrap()).cloned())
            };
            if let Some(event) = next {
                let id = last + 1;
                let sse = SseEvent::default().id(id.to_string()).json_data(&event).unwrap();
                return Some((sse, (node, news, id)));
            }
            news.changed().await.ok()?;
        }
    });
    let head = trimmed.then(|| SseEvent::default().event("trimmed").data(""));
    Sse::new(stream::iter(head).chain(live).map(Ok))
}

/// One line now, one when the node has news.
async fn logs(State(node): State<Shared>, request: Request) -> ApiResult<Response> {
    let (parts, _) = request.into_parts();
    note_call(&node, &parts, b"")?;
    let mut news = node.news.subscribe();
    news.borrow_and_update();
    let lines = stream::iter([Ok::<_, Infallible>("first\n")]).chain(stream::once(async move {
        let _ = news.changed().await;
        Ok("second\n")
    }));
    let kind = [(http::header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

async fn exec(State(node): State<Shared>, request: Request) -> ApiResult<Response> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 100_000).await.unwrap();
    note_call(&node, &parts, &body)?;
    Ok(([("content-type", "application/x-ndjson")], body).into_response())
}

fn note_call(node: &Node, parts: &http::request::Parts, body: &[u8]) -> ApiResult<()> {
    let (path, query) = (parts.uri.path(), parts.uri.query());
    let now = clock::now_secs();
    let key = node.verifier.verify(&parts.method, path, query, &parts.headers, body, now)?;
    let line = format!("{} {}", parts.method, parts.uri);
    node.memory.lock().unwrap().calls.push((line, key.to_string()));
    Ok(())
}
