//! The ledger over HTTP: a real instance on a free port, a real database, and the client and the
//! identity manager that use it. Each store runs all of it: `sqlite.rs`, `postgres.rs`.

mod accounts;
mod auth;
mod backup;
mod client;
mod crash;
mod farms;
mod filters;
pub mod harness;
mod hostile;
pub mod kill;
mod manager;
mod nodes;
mod registrar_v4;
mod service;
mod uptime;
mod v2;
mod zos;
