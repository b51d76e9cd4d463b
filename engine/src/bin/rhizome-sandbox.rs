//! Evaluates scripts for the tests of this crate. With `shell COMMANDS` its children are shells
//! instead, which say what they like.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// As the `rhizome` binary has it: the limits of memory are tried with the allocator that is used.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [shell, commands] if shell == "shell" => {
            let exec = || Err(Command::new("/bin/sh").arg("-c").arg(commands).exec());
            rhizome_engine::sandbox_main_with(exec)
        }
        _ => rhizome_engine::sandbox_main(),
    }
}
