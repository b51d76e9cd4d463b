//! The SAL against the real system: loop-mounted btrfs, runc or crun, network namespaces.
//!
//! These tests run as root. Each has a node of its own, with its own mark and pool, so they run in
//! parallel; what a test has made is taken away when it ends, also when it fails.

// All of it is tests, the functions that they share too.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod crash;
mod daemon;
mod done;
mod herodb;
mod image;
mod keep;
mod logs;
mod machine;
mod mycelium;
mod net;
mod netns;
mod node;
mod pair;
mod snapshots;
mod tpm;
mod vm;
mod vm_bench;
mod vm_drivers;
mod vm_linux;
mod volume;
mod world;
