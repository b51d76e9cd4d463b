//! The image as others see it: binutils, dosfstools, mtools, gdisk, fdisk, cpio, and firmware with a
//! real kernel in QEMU. What is missing here is said in words: "SKIPPED: …".

// A test that panics says where; a test that is skipped says so.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod boot;
mod image;
mod tools;
