//! The queue against a real redis-server, one per test, on a unix socket in a folder of its own.

mod connect;
mod events;
mod jobs;
mod leases;
mod model;
mod restart;
mod storm;
mod support;
mod tasks;
