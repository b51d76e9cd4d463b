//! The ledger over HTTP: a real instance on a free port, a real SQLite file, and the client and the
//! identity manager that use it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accounts;
mod auth;
mod client;
mod crash;
mod farms;
mod harness;
mod manager;
mod nodes;
mod service;
