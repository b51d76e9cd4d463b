//! What the tests boot: two guests of our own, for hypervisors that can run Linux and for those that
//! cannot.
//!
//! - [`pvh`] makes a kernel of some 300 bytes that prints a line on the serial port and powers off,
//!   resets, or halts: every hypervisor runs it, in milliseconds.
//! - [`linux`] puts Debian's kernel and busybox together, with an init that does what a cloud image
//!   does: it reads the NoCloud disk and becomes what it is told to be.
//!
//! Must not be used outside of tests.

mod linux;
mod pvh;
mod served;

pub use linux::{CMDLINE, Linux, linux};
pub use pvh::{PvhEnd, pvh};
pub use served::get;
