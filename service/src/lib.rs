//! What every process of ours does alike: logs, listening, calling, health, metrics, stopping.
//!
//! ```text
//!   log::init ─▶ Shutdown::on_signals ─▶ bind ─▶ http::serve(listener, router, shutdown)
//!                                                  /healthz /metrics /openapi.json + the service's own
//! ```
//!
//! Must not know: any service, any key, any table.

pub mod client;
pub mod clock;
pub mod http;
pub mod log;
pub mod metrics;
pub mod random;
pub mod shutdown;

pub use client::Client;
pub use http::{ApiError, ApiResult, Health, serve};
pub use shutdown::Shutdown;
