//! What a script may say, and what becomes of it.
//!
//! A script is Rhai with the functions of [`reference`]. It is evaluated in a process of its own,
//! without privileges and within [`Limits`](rhizome_model::Limits), and acts on a [`Host`]: the
//! same code checks ([`check`]), plans ([`plan`]) and executes ([`Sandboxes::evaluate`]).
//!
//! ```text
//!   caller ── Script, Host ──▶ Sandboxes ══ frames over stdin, stdout ══▶ child: cage, Rhai, API
//!                                 │  ◀── declare, read, act, secret, log, output, done
//!                                 └─▶ Host: queue it · predict it
//! ```
//!
//! The child is trusted with nothing: the parent checks again whatever it says.
//!
//! Must not know: the SAL, the queue, Redis, HTTP.

mod analysis;
mod api;
mod check;
mod child;
mod diagnostic;
mod docs;
mod host;
mod plan;
mod sandbox;
mod script;
mod shape;
mod wire;

pub use check::check;
pub use child::{sandbox_main, sandbox_main_with};
pub use docs::{definitions, reference};
pub use host::{Evaluation, Host, HostError, Stop};
pub use plan::{Plan, plan};
pub use sandbox::{SandboxOptions, Sandboxes};
pub use script::{Context, Peer, Script};
