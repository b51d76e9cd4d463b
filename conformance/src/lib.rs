//! The contract of the queue, as cases that any backend can be run against.
//!
//! ```text
//!   run(backend) ─▶ for each case: does the backend have what it needs? ─▶ no: skipped, with the reason
//!                     └▶ a fresh node ─▶ the case acts on it as its users would ─▶ held, or broken
//! ```
//!
//! A backend is a [`Backend`]: it starts a [`Node`], which makes [`Runner`]s, which hand out
//! [`Lease`]s. What it may lack is a [`Capability`]; what needs one that is lacking is skipped, never
//! passed. Four come with the suite: [`Redis`] with functions, with scripts only, and on Valkey; and
//! [`Model`], which keeps everything in memory and changes a state by
//! [`JobState::step`](rhizome_model::JobState::step).
//!
//! Must not know: how a backend keeps what it is entrusted with.

mod backend;
mod bed;
mod cases;
mod model;
mod redis;
mod report;

pub use backend::{Backend, Capability, Lease, Node, Result, Runner, Seat, Upkeep};
pub use bed::Bed;
pub use cases::{Case, all};
pub use model::{Flaw, Model};
pub use redis::Redis;
pub use report::{Report, Verdict, run, run_case};
