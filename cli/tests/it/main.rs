//! The built binary, driven as a user would.

mod check;
mod config;
mod harness;
mod keys;
mod misuse;
mod signing;
