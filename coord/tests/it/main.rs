//! coord as a whole: the real one on a port of its own with a database of its own, between a ledger
//! and supervisors that remember, fail when told to, and can go away and come back.

// What clippy.toml allows in tests it sees in `#[test]` functions only, not in what they call.
#![allow(clippy::unwrap_used)]

mod access;
mod events;
mod lost;
mod nodes;
mod outage;
mod submit;
mod world;
