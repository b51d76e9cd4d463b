//! The queue with faults: each test has a redis-server of its own.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what is allowed in tests is not seen in the helpers of an integration test"
)]

mod bed;
mod chaos;
mod leases;
mod moves;
mod power;
mod proxy;
mod submitting;
mod tasks;
mod verdicts;
