//! The sandbox: a zygote gives up what it has and forks; each child evaluates one script and exits.

mod cage;
mod errors;
mod evaluate;
mod pipe;
mod zygote;

use std::io;
use std::process::ExitCode;

pub use errors::parse_finding;

use crate::analysis::Functions;
use crate::api::{self, Session};
use crate::wire::{FromChild, ToChild};
use evaluate::Evaluator;
use pipe::Pipe;

/// The body of a process whose children evaluate one script each for its parent, which speaks to
/// them over standard input and output (see `wire`).
///
/// Call it before anything else, above all before any thread is started: the cage holds the
/// calling thread.
pub fn sandbox_main() -> ExitCode {
    zygote::run(prepare, evaluate)
}

/// As [`sandbox_main`], with other children: to try what a parent believes.
#[doc(hidden)]
pub fn sandbox_main_with(child: impl FnOnce() -> io::Result<()>) -> ExitCode {
    zygote::run(cage::give_up, |()| child())
}

fn prepare(uid_gid: u32) -> io::Result<Evaluator> {
    cage::give_up(uid_gid)?;
    let session = Session::new(Box::new(Pipe));
    let engine = api::engine(&session);
    let functions = Functions::of(&engine);
    let evaluator = Evaluator { engine, functions, session };
    evaluator.warm_up();
    Ok(evaluator)
}

fn evaluate(mut evaluator: Evaluator) -> io::Result<()> {
    let cage = cage::close()?;
    Pipe.send(&FromChild::Ready)?;
    let limits = match Pipe.receive() {
        Ok(ToChild::Limits(limits)) => limits,
        Ok(_) => return Err(unexpected("Limits")),
        // The parent went away before it had a script: the usual end of a warm child.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Err(error) => return Err(error),
    };
    cage.seal(&limits)?;
    evaluator.limit(limits);
    let ToChild::Script(work) = Pipe.receive()? else { return Err(unexpected("Script")) };
    let done = evaluator.run(&work);
    Pipe.send(&FromChild::Done(done))
}

fn unexpected(wanted: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the parent did not send {wanted}"))
}
