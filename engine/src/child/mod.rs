//! The sandbox child: gives up what it has, evaluates one script, exits.

mod cage;
mod errors;
mod evaluate;
mod pipe;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

pub use errors::parse_finding;

use crate::analysis::Functions;
use crate::api::{self, Session};
use crate::wire::{FromChild, ToChild};
use evaluate::Evaluator;
use pipe::Pipe;

/// The body of a process that evaluates one script for its parent, which speaks to it over
/// standard input and output (see `wire`).
///
/// Call it before anything else, above all before any thread is started: the cage holds the
/// calling thread.
pub fn sandbox_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        // The parent went away before it had a script: the usual end of a warm child.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => ExitCode::SUCCESS,
        Err(error) => {
            pipe::complain(&format!("sandbox: {error}\n"));
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let pipe = Arc::new(Pipe);
    let ToChild::Setup { uid_gid } = pipe.receive()? else { return Err(unexpected("Setup")) };
    cage::give_up(uid_gid)?;

    let session = Session::new(Box::new(Arc::clone(&pipe)));
    let engine = api::engine(&session);
    let functions = Functions::of(&engine);
    let mut evaluator = Evaluator { engine, functions, session };
    evaluator.warm_up();
    let cage = cage::close()?;
    pipe.send(&FromChild::Ready)?;

    let ToChild::Limits(limits) = pipe.receive()? else { return Err(unexpected("Limits")) };
    cage.seal(&limits)?;
    evaluator.limit(limits);
    let ToChild::Script(work) = pipe.receive()? else { return Err(unexpected("Script")) };
    let done = evaluator.run(&work);
    pipe.send(&FromChild::Done(done))
}

fn unexpected(wanted: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the parent did not send {wanted}"))
}
