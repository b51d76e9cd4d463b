//! Reports of uptime: v4's, one at a time, and ours, which say their boot and may come late; and what
//! they come to.
//!
//! ```text
//!   POST /v1/nodes/{id}/uptime ─┐
//!                               ├─▶ key known? verify ─▶ db: batch ─▶ is it still the key? ─▶ History
//!   POST /v2/nodes/{id}/uptime ─┘                                          no: verify anew
//!   GET  /v2/nodes/{id}/availability, /v2/availability
//! ```
//!
//! A signature is verified with the key that this process remembers. The commit that stores the report
//! looks whether it is still the account's: so several ledgers may share a database, and a key that
//! was changed elsewhere stores nothing.

mod availability;
pub mod history;
mod keys;
mod v1;
mod v2;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use keys::KnownKeys;
pub use v1::{__path_report, report};

use crate::App;

/// What stands below `/v2`.
pub fn routes() -> OpenApiRouter<std::sync::Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(v2::report))
        .routes(routes!(availability::of_node))
        .routes(routes!(availability::of_all))
}
