//! A deployment's events: what was stored first, then what comes as it is committed.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, header};
use rhizome_model::{AccountId, DeploymentId, Event, Failure, Name};
use rhizome_service::ApiResult;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast};

use super::caller::Caller;
use super::{App, Path, Query, no_deployment, own, too_many_streams};
use crate::store::{MAX_EVENTS, News, StoreError};

/// Events that are read from the store at a time.
const PAGE: usize = 256;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Begin after the event with this number. `Last-Event-ID` wins.
    #[serde(default)]
    after: u64,
}

/// A deployment's events as they come (`text/event-stream`: the id is the event's number, the data
/// an `Event`), or with `Accept: application/json` those that there are. An event named `trimmed`
/// says that older ones are kept no longer.
#[utoipa::path(
    get, path = "/v1/deployments/{account}/{name}/events", tag = "deployments",
    params(("account" = u64, Path), ("name" = String, Path), EventsQuery),
    responses(
        (status = 200, content((String = "text/event-stream"), (Vec<Event> = "application/json"))),
        (status = 404, body = Failure),
    )
)]
pub async fn events(
    State(app): State<App>,
    caller: Caller,
    Path((account, name)): Path<(AccountId, Name)>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let id = own(&caller, account, name)?;
    let text = |name| headers.get(name).and_then(|v: &http::HeaderValue| v.to_str().ok());
    let resumed = text(http::HeaderName::from_static("last-event-id"));
    let after = resumed.and_then(|n| n.parse().ok()).unwrap_or(query.after);
    if text(header::ACCEPT).is_some_and(|a| a.contains("application/json")) {
        exists(&app, &id).await?;
        return list(&app, &id, after).await;
    }
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| too_many_streams())?;
    let stopped = app.shutdown.token.clone().cancelled_owned();
    let mut reader = Reader::new(app, id, after, permit);
    reader.read().await.map_err(Failure::from)?;
    if reader.ready.is_empty() {
        exists(&reader.app, &reader.id).await?;
    }
    let stream = follow(reader).take_until(stopped);
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

async fn exists(app: &App, id: &DeploymentId) -> ApiResult<()> {
    let exists = app.store.has_deployment(id).await.map_err(Failure::from)?;
    if exists { Ok(()) } else { Err(no_deployment(id)) }
}

async fn list(app: &App, id: &DeploymentId, after: u64) -> ApiResult<Response> {
    let limit = usize::try_from(MAX_EVENTS).unwrap_or(usize::MAX).saturating_add(PAGE);
    let page = app.store.events(id, after, limit).await.map_err(Failure::from)?;
    let events: Vec<Box<RawValue>> = page
        .events
        .into_iter()
        .map(|(_, body)| RawValue::from_string(body))
        .collect::<Result<_, _>>()
        .map_err(|e| Failure::from(StoreError::from(e)))?;
    Ok(axum::Json(events).into_response())
}

struct Reader {
    app: App,
    id: DeploymentId,
    after: u64,
    news: broadcast::Receiver<News>,
    /// All that was in the store; what comes then is told as it comes.
    has_read_all: bool,
    ready: VecDeque<SseEvent>,
    _permit: OwnedSemaphorePermit,
}

fn follow(reader: Reader) -> impl Stream<Item = Result<SseEvent, Infallible>> + Send {
    stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    })
}

impl Reader {
    fn new(app: App, id: DeploymentId, after: u64, permit: OwnedSemaphorePermit) -> Self {
        let news = app.store.follow(&id);
        let ready = VecDeque::new();
        Self { app, id, after, news, has_read_all: false, ready, _permit: permit }
    }

    /// The next event. `None` when the store fails: the caller comes back and resumes.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.has_read_all {
                self.hear().await?;
            } else if let Err(error) = self.read().await {
                tracing::error!(deployment = %self.id, error = %Failure::from(error),
                    "events cannot be read");
                return None;
            }
        }
    }

    /// Waits for news: the next event, or that there is something to read.
    async fn hear(&mut self) -> Option<()> {
        match self.news.recv().await {
            Ok(News::Event { number, body }) if number == self.after.saturating_add(1) => {
                self.push(number, &body);
            }
            // It was read from the store.
            Ok(News::Event { number, .. }) if number <= self.after => {}
            Ok(News::Event { .. } | News::Stored) | Err(RecvError::Lagged(_)) => {
                self.has_read_all = false;
            }
            Err(RecvError::Closed) => return None,
        }
        Some(())
    }

    fn push(&mut self, number: u64, body: &str) {
        self.after = number;
        self.ready.push_back(SseEvent::default().id(number.to_string()).data(body));
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        let page = self.app.store.events(&self.id, self.after, PAGE).await?;
        self.has_read_all = page.events.len() < PAGE;
        if page.trimmed {
            self.ready.push_back(SseEvent::default().event("trimmed").data("{}"));
        }
        for (number, body) in page.events {
            self.push(number, &body);
        }
        Ok(())
    }
}
