//! The shim and its helper as a program of its own, as `rhizome machine-shim` and `rhizome machine-vm`
//! are: for the tests of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(name) if name == "machine-vm" => rhizome_sal::vm::machine_vm_main(args),
        _ => rhizome_sal::machine_shim_main(args),
    }
}
