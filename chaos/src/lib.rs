//! The queue on its worst days: real servers, real processes, real kills, and a checker that
//! believes nobody.
//!
//! ```text
//!   chaos ── submits, cancels, looks ──▶ Proxy ──▶ Server (redis-server, killed and frozen)
//!     ├─ Nemesis, by seed                  ▲
//!     └─ Fleet ── starts, kills, freezes ─▶ chaos-worker ×16 ── effects ──▶ a file
//!   at the end: Checker reads the history, the effects and the records
//! ```
//!
//! Nothing here is a stand-in. What a job did is written down outside of Redis by who did it, and
//! all that is written down has one clock.
//!
//! Must not know: a Redis key. It uses the queue as any other program would.

pub mod checker;
pub mod fleet;
pub mod history;
pub mod machine;
pub mod nemesis;
pub mod plan;
pub mod power;
pub mod proxy;
pub mod run;
pub mod server;
pub mod wire;
pub mod worker;
