//! The ledger's tests, on PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "it/mod.rs"]
mod it;
#[path = "it/kill_database.rs"]
mod kill_database;

use it::harness;

const STORE: rhizome_database::Store = rhizome_database::Store::Postgres;
