//! `rhizome`: the user's hand, and every service, in one binary.
//!
//! ```text
//!   main ─▶ sandbox, machine-shim? they must stay tiny: before anything else
//!        ─▶ config: rhizome.toml becomes RHIZOME_* where these are not set
//!        ─▶ cli: clap reads flags, then RHIZOME_*
//!        ─▶ commands::X::run(args, &globals) ─▶ exit code, or an error that `output` shows
//! ```

mod bench;
mod cli;
mod commands;
mod config;
mod coord;
mod dev;
mod document;
mod error;
mod follow;
mod ledger;
mod operation;
mod output;
mod plan;
mod profile;
mod progress;
mod refs;
mod render;
mod services;
mod submission;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::Cli;
use crate::error::Error;

/// Under load a runner spends a fifth of its time on many small pieces of memory. It reserves no
/// address space ahead, which a sandbox is limited by.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NO_COMMAND: ErrorKind = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(OsStr::to_str) {
        // It evaluates a foreign script: it starts with nothing of ours in its memory.
        Some("sandbox") => return rhizome_engine::sandbox_main(),
        // It becomes a machine's parent for as long as the machine lives: it forks, so no threads.
        Some("machine-shim") => return rhizome_sal::machine_shim_main(args),
        // Its signals are held back for all threads that it will have.
        Some("machine-vm") => return rhizome_sal::vm::machine_vm_main(args),
        _ => {}
    }
    // Known before the arguments are read: their own mistakes are shown as JSON, too.
    let wants_json = std::env::args_os().take_while(|a| a != "--").any(|a| a == "--json");
    match run() {
        Ok(code) => code,
        Err(error) => output::error(&error, wants_json),
    }
}

fn run() -> Result<ExitCode, Error> {
    config::apply()?;
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Not errors but answers: --help, --version, and the help for somebody who gave nothing.
        Err(e) if !e.use_stderr() || e.kind() == NO_COMMAND => e.exit(),
        Err(e) => return Err(Error::from_clap(&e)),
    };
    let usual = if cli.command.is_service() { "info" } else { "warn" };
    let filter = cli.globals.log.as_deref().unwrap_or(usual);
    rhizome_service::log::init(filter, rhizome_service::log::Format::Text)
        .map_err(|e| error::misuse(e.to_string()))?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if cli.command.is_beside_redis() {
        runtime.worker_threads(half_of_the_cores());
    }
    let runtime = runtime.enable_all().build();
    let runtime =
        runtime.map_err(|e| error::internal("cannot start the asynchronous runtime", &e))?;
    // A task like all others: between this thread and those of the runtime each word costs a wake-up.
    let command = runtime.spawn(async move { cli.command.run(&cli.globals).await });
    let code = runtime.block_on(command);
    // A read of standard input cannot be cancelled; nobody waits for it.
    runtime.shutdown_background();
    code.unwrap_or_else(|ended| match ended.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(ended) => Err(error::internal("the command did not end by itself", &ended).into()),
    })
}

/// The others are redis-server's, which is one thread: on two cores a second thread of ours takes it a
/// fifth of what it drains, and twice as long until a job is dispatched.
fn half_of_the_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}
