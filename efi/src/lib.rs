//! Builds the image that a node boots from: a Unified Kernel Image on an EFI system partition.
//!
//! ```text
//!  folder ──initramfs──▶ initrd ─┐
//!  systemd's stub, kernel, ──────┼─ Uki::assemble ─▶ one EFI program ──write_disk──▶ GPT disk image
//!  os-release, command line ─────┘                         └──────write_uki──▶ the program alone
//! ```
//!
//! Invariants: the same inputs give the same bytes (no clock, no chance: identifiers are hashes of the
//! content); nothing foreign is trusted, every offset is checked before it is used; a file appears at
//! its place complete or not at all.

mod disk;
mod error;
mod initramfs;
mod pe;
mod place;
mod stub;
mod uki;

pub use disk::{write_disk, write_uki};
pub use error::EfiError;
pub use initramfs::initramfs;
pub use place::Written;
pub use stub::{STUB, STUB_PACKAGE, read_stub};
pub use uki::Uki;

/// The most that an image, and each part of it, may have: firmware reads it into memory as a whole,
/// and more than this does not fit beside itself unpacked on a small node.
pub const MAX_BYTES: u64 = 1 << 30;
