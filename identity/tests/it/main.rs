//! What others made: keys of OpenSSH and of the grid's clients, an envelope of another DSSE
//! implementation, and challenges as the registrar's clients sign them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod dsse;
mod keys;
mod socket;
mod ssh;
