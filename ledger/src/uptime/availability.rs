//! How much of a time nodes were up.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use rhizome_model::Failure;
use rhizome_model::availability::{Availability, Gap, Share};
use rhizome_service::clock;

use super::history::Span;
use crate::App;
use crate::error::{LedgerError, Reply};
use crate::nodes::{find, node_id};
use crate::request::{Params, Total};

/// Without a window, the last 30 days are meant.
const USUAL_SECS: i64 = 30 * 24 * 3600;

/// What one node was up, and where nothing vouches for it.
#[utoipa::path(get, path = "/nodes/{node_id}/availability", tag = "uptime", params(
    ("node_id" = u64, Path),
    ("from" = Option<u64>, Query, description = "Unix seconds; 30 days before `until` without it"),
    ("until" = Option<u64>, Query, description = "Unix seconds; now without it")),
    responses((status = 200, body = Availability), (status = 400, body = Failure), (status = 404, body = Failure)))]
pub async fn of_node(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Query<HashMap<String, String>>,
) -> Reply<Json<Availability>> {
    let window = window(&Params::new(query, "the window"))?;
    let node = find(&app, node_id(&id, "Invalid node id")?, "node not found").await?;
    let failed = |e| LedgerError::database("failed to read uptime", &e);
    let record = app.db.uptime_of(node.node_id, window).await.map_err(failed)?;
    let window = since(window, record.registered);
    let gaps = gaps(window, &record.spans);
    let down: i64 = gaps.iter().map(|gap| gap.until - gap.from).sum();
    let length = window.until - window.from;
    Ok(Json(Availability {
        node_id: node.node_id,
        from: window.from,
        until: window.until,
        up_s: (length - down).unsigned_abs(),
        share: share(length - down, length),
        gaps,
        events: record.events.into_iter().filter(|event| event.at >= window.from).collect(),
    }))
}

/// What nodes were up, by id.
#[utoipa::path(get, path = "/availability", tag = "uptime", params(
    ("from" = Option<u64>, Query, description = "Unix seconds; 30 days before `until` without it"),
    ("until" = Option<u64>, Query, description = "Unix seconds; now without it"),
    ("page" = Option<u64>, Query, description = "From 1"),
    ("size" = Option<u64>, Query, description = "50 without it, 1000 at most")),
    responses((status = 200, body = [Share]), (status = 400, body = Failure)))]
pub async fn of_all(
    State(app): State<Arc<App>>,
    query: Query<HashMap<String, String>>,
) -> Reply<(Total, Json<Vec<Share>>)> {
    let params = Params::new(query, "the window");
    let window = window(&params)?;
    let failed = |e| LedgerError::database("failed to read uptime", &e);
    let nodes = app.db.uptime_of_all(window, params.page()?).await.map_err(failed)?;
    let total = app.db.count_nodes().await.map_err(failed)?;
    let shares = nodes.into_iter().map(|(node_id, registered, up)| {
        let window = since(window, registered);
        let up = up.min(window.until - window.from);
        Share { node_id, up_s: up.unsigned_abs(), share: share(up, window.until - window.from) }
    });
    Ok((Total(total), Json(shares.collect())))
}

fn window(params: &Params) -> Reply<Span> {
    let given = |name| -> Reply<Option<i64>> {
        Ok(params.number(name)?.map(|secs| i64::try_from(secs).unwrap_or(i64::MAX)))
    };
    let now = clock::now_secs();
    let until = given("until")?.unwrap_or(now).min(now);
    let from = given("from")?.unwrap_or(until.saturating_sub(USUAL_SECS));
    if from > until {
        return Err(LedgerError::bad_request("the window ends before it begins, or is to come"));
    }
    Ok(Span { from, until })
}

/// The part of a window since a node was registered.
fn since(window: Span, registered: i64) -> Span {
    Span { from: window.from.max(registered).min(window.until), until: window.until }
}

fn share(up: i64, length: i64) -> Option<f64> {
    (length > 0).then(|| up as f64 / length as f64)
}

/// What lies between spans, which are in order and apart.
fn gaps(window: Span, spans: &[Span]) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut covered = window.from;
    for span in spans {
        if span.from > covered && covered < window.until {
            gaps.push(Gap { from: covered, until: span.from.min(window.until) });
        }
        covered = covered.max(span.until);
    }
    if covered < window.until {
        gaps.push(Gap { from: covered, until: window.until });
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_lies_between() {
        let spans = [(0, 10), (20, 30), (40, 50)].map(|(from, until)| Span { from, until });
        for (from, until, found) in [
            (0, 50, vec![(10, 20), (30, 40)]),
            (5, 8, vec![]),
            (12, 15, vec![(12, 15)]),
            (-5, 60, vec![(-5, 0), (10, 20), (30, 40), (50, 60)]),
            (25, 25, vec![]),
        ] {
            let gaps = gaps(Span { from, until }, &spans);
            let gaps: Vec<_> = gaps.iter().map(|gap| (gap.from, gap.until)).collect();
            assert_eq!(gaps, found, "{from} {until}");
        }
    }
}
