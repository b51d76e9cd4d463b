//! The harness of the whole-system tests: `rhizome dev` and the command line, as a user has them,
//! and an oracle that asks the kernel, never our notes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod disks;
mod kernel;
mod system;

pub use disks::{Disk, Mounted, tool};
pub use kernel::{Kernel, processes_naming};
pub use system::{Answer, System, binary, command, eventually};
