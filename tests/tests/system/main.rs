//! Whole-system tests: `rhizome dev` and the command line, with real btrfs, Redis and containers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod actions;
mod agent;
mod chaos;
mod demo;
mod herodb;
mod identity;
mod image;
mod lifecycle;
mod network;
mod plan;
mod queue_ops;
mod reconcile;
mod refusals;
mod restart;
mod statements;
mod storm;
mod tidy;
mod vm;
