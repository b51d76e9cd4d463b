//! The system abstraction layer: one module per workload kind and per tool.
//!
//! ```text
//!   runner ──▶ Workload (erased) ─┬▶ volume::Driver ──▶ btrfs (ioctls)
//!                                 ├▶ herodb::Driver ─┐
//!                                 └▶ machine::Driver ┼▶ image, btrfs, net (ip, nft), oci | vm
//!                                                    └▶ program: a shim, one tiny process per program
//! ```
//!
//! - Verbs are ensure and delete; each may be killed between any two steps and done again.
//! - What exists is read from the system itself, and everything of ours carries the node's mark and
//!   its resource id: subvolume names, cgroup names, network namespaces, link aliases.
//! - Operations on one resource are serialised, also across processes; different ones run in parallel.
//! - This is the only place that starts a system tool, and [`tool`] is the only door to one.
//!
//! Must not know: jobs, queues, scripts, the wire.

mod btrfs;
mod cgroup;
mod error;
mod files;
mod herodb;
mod image;
mod lock;
mod machine;
mod mycelium;
mod net;
mod node;
mod oci;
mod pool;
mod program;
mod sal;
mod tool;
mod tpm;
pub mod vm;
mod volume;
mod workload;

pub use error::SalError;
pub use mycelium::{Mycelium, MyceliumConfig, Peer, Peers};
pub use node::{NodeConfig, Pool};
pub use program::{Untold, machine_shim_main};
pub use sal::{Fact, Sal};
pub use tpm::Tpm;
pub use workload::{Chunk, Ensured, Kept, Notice, Workload};
