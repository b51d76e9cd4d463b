//! The built binary, driven as a user would.

// A test that panics says where.
#![allow(clippy::unwrap_used)]

mod address;
mod bench;
mod check;
mod config;
mod coord;
mod deploy;
mod harness;
mod identity;
mod keys;
mod misuse;
mod real;
mod signing;
