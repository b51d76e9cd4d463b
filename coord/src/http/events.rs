//! A deployment's events: what was stored first, then what comes, from one source.

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
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::caller::Caller;
use super::{App, Path, Query, no_deployment, own, too_many_streams};
use crate::store::{MAX_EVENTS, StoreError};

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
    if !app.store.has_deployment(&id).await.map_err(Failure::from)? {
        return Err(no_deployment(&id));
    }
    let text = |name| headers.get(name).and_then(|v: &http::HeaderValue| v.to_str().ok());
    let resumed = text(http::HeaderName::from_static("last-event-id"));
    let after = resumed.and_then(|n| n.parse().ok()).unwrap_or(query.after);
    if text(header::ACCEPT).is_some_and(|a| a.contains("application/json")) {
        return list(&app, &id, after).await;
    }
    let permit = app.streams.clone().try_acquire_owned().map_err(|_| too_many_streams())?;
    let stopped = app.shutdown.token.clone().cancelled_owned();
    let stream = follow(app, id, after, permit).take_until(stopped);
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
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
    news: watch::Receiver<()>,
    ready: VecDeque<SseEvent>,
    _permit: OwnedSemaphorePermit,
}

fn follow(
    app: App,
    id: DeploymentId,
    after: u64,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<SseEvent, Infallible>> + Send {
    let news = app.store.follow(&id);
    let reader = Reader { app, id, after, news, ready: VecDeque::new(), _permit: permit };
    stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    })
}

impl Reader {
    /// The next event. `None` when the store fails: the caller comes back and resumes.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            // Before reading: what is stored while we read is news again.
            self.news.borrow_and_update();
            let page = match self.app.store.events(&self.id, self.after, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(deployment = %self.id, error = %Failure::from(error),
                        "events cannot be read");
                    return None;
                }
            };
            if page.events.is_empty() {
                self.news.changed().await.ok()?;
                continue;
            }
            if page.trimmed {
                self.ready.push_back(SseEvent::default().event("trimmed").data("{}"));
            }
            for (number, body) in page.events {
                self.after = number;
                self.ready.push_back(SseEvent::default().id(number.to_string()).data(body));
            }
        }
    }
}
