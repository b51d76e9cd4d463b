//! The machine shim as a program of its own, as `rhizome machine-shim` is: for the tests of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    rhizome_sal::machine_shim_main(std::env::args_os().skip(2))
}
