//! What the tables say of a window of time.

use rhizome_database::query;
use rhizome_model::NodeId;
use rhizome_model::availability::UptimeEvent;

use super::{Db, DbError, Page, column, id_of};
use crate::uptime::history::Span;

const MICROS: i64 = 1_000_000;

/// A node's uptime, as the tables have it.
pub struct UptimeRecord {
    /// In Unix seconds.
    pub registered: i64,
    pub spans: Vec<Span>,
    pub events: Vec<UptimeEvent>,
}

/// A node, when it was registered, and the seconds that it was up.
pub type UpOf = (NodeId, i64, i64);

/// Last and earlier spans alike.
const ALL_SPANS: &str = "(SELECT node, up_from, up_until FROM presence WHERE up_from IS NOT NULL
                          UNION ALL SELECT node, up_from, up_until FROM spans)";

impl Db {
    /// The spans that touch a window, and the events within. The node must exist.
    pub async fn uptime_of(&self, node: NodeId, window: Span) -> Result<UptimeRecord, DbError> {
        let (created,) = query("SELECT created_at FROM nodes WHERE id = $1")
            .bind(column(node.0))
            .fetch_one::<(i64,)>(&self.database)
            .await?;
        let spans: Vec<(i64, i64)> = query(
            "SELECT up_from, up_until FROM presence
             WHERE node = $1 AND up_until >= $2 AND up_from <= $3
             UNION ALL
             SELECT up_from, up_until FROM spans
             WHERE node = $1 AND up_until >= $2 AND up_from <= $3
             ORDER BY 1",
        )
        .bind(column(node.0))
        .bind(window.from)
        .bind(window.until)
        .fetch_all(&self.database)
        .await?;
        let events: Vec<(i64, String, String)> = query(
            "SELECT at, kind, detail FROM uptime_events
             WHERE node = $1 AND at >= $2 AND at <= $3 ORDER BY at, kind",
        )
        .bind(column(node.0))
        .bind(window.from)
        .bind(window.until)
        .fetch_all(&self.database)
        .await?;
        Ok(UptimeRecord {
            registered: created / MICROS,
            spans: spans.into_iter().map(|(from, until)| Span { from, until }).collect(),
            events: events
                .into_iter()
                .map(|(at, kind, detail)| UptimeEvent { at, kind, detail })
                .collect(),
        })
    }

    /// The nodes of a page, with what they were up of a window since they were registered.
    pub async fn uptime_of_all(&self, window: Span, page: Page) -> Result<Vec<UpOf>, DbError> {
        let rows: Vec<(i64, i64, i64)> = rhizome_database::query_built(format!(
            "SELECT n.id, n.created_at / {MICROS},
                    CAST(COALESCE(SUM(CASE WHEN s.up_until < $2 THEN s.up_until ELSE $2 END
                       - CASE WHEN s.up_from > n.begun THEN s.up_from ELSE n.begun END), 0) AS BIGINT)
             FROM (SELECT id, created_at, CASE WHEN created_at / {MICROS} > $1
                          THEN created_at / {MICROS} ELSE $1 END AS begun
                   FROM nodes ORDER BY id LIMIT $3 OFFSET $4) n
             LEFT JOIN {ALL_SPANS} s ON s.node = n.id AND s.up_until > n.begun AND s.up_from < $2
             GROUP BY n.id, n.created_at ORDER BY n.id"
        ))
        .bind(window.from)
        .bind(window.until)
        .bind(page.limit)
        .bind(page.offset)
        .fetch_all(&self.database)
        .await?;
        Ok(rows.into_iter().map(|(id, at, up)| (NodeId(id_of(id)), at, up)).collect())
    }
}
