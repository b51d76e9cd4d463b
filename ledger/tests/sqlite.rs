//! The ledger's tests, on SQLite.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "it/mod.rs"]
mod it;

use it::harness;

const STORE: rhizome_database::Store = rhizome_database::Store::Sqlite;
