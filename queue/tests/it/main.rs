//! The queue against a real redis-server, one per test, on a unix socket in a folder of its own.

#![allow(
    clippy::unwrap_used,
    reason = "allow-unwrap-in-tests does not see the helpers of an integration test"
)]

mod allowance;
mod connect;
mod events;
mod histories;
mod jobs;
mod journal;
mod leases;
mod model;
mod operations;
mod places;
mod reservations;
mod restart;
mod storm;
mod support;
mod tasks;
mod together;
