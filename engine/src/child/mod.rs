//! The sandbox: a zygote gives up what it has and forks; each child evaluates one script and exits.

mod cage;
mod errors;
mod evaluate;
mod pipe;
mod zygote;

use std::io;
use std::process::ExitCode;

use rhizome_model::Limits;

pub use errors::parse_finding;

use crate::analysis::Functions;
use crate::api::{self, Session};
use crate::wire::{FromChild, ToChild};
use cage::Cage;
use evaluate::Evaluator;
use pipe::Pipe;
use zygote::Begin;

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
    zygote::run(|_| Ok(()), |(), _| child())
}

fn prepare(uid_gid: u32) -> io::Result<(Cage, Evaluator)> {
    let session = Session::new(Box::new(Pipe));
    let engine = api::engine(&session);
    let functions = Functions::of(&engine);
    let evaluator = Evaluator { engine, functions, session };
    evaluator.warm_up();
    Pipe.warm_up();
    // It looks into /proc, of which nothing is left afterwards.
    let cage = Cage::new()?;
    cage::give_up(uid_gid)?;
    cage.enter()?;
    Ok((cage, evaluator))
}

fn evaluate((cage, mut evaluator): (Cage, Evaluator), begin: Begin) -> io::Result<()> {
    cage::close_descriptors(begin.beyond())?;
    let limits = match begin {
        Begin::AtOnce => {
            let limits = limits()?;
            cage.close(&limits)?;
            limits
        }
        Begin::WhenAsked(zygote) => {
            // So that it has its own copies of what it will write to.
            evaluator.warm_up();
            cage.close_ahead()?;
            if !pipe::wait(zygote)? {
                return Ok(());
            }
            cage::close_descriptors(zygote)?;
            let limits = limits()?;
            cage.close_rest(&limits)?;
            limits
        }
    };
    evaluator.limit(limits);
    let work = match Pipe.receive()? {
        ToChild::Script(work) => work,
        ToChild::Limits(_) | ToChild::Reply(_) => {
            return Err(io::Error::other("the parent sent no script"));
        }
    };
    let done = evaluator.run(&work);
    Pipe.send(&FromChild::Done(done))?;
    // To tidy up would copy all that is shared with the zygote.
    std::mem::forget(evaluator);
    Ok(())
}

fn limits() -> io::Result<Limits> {
    match Pipe.receive()? {
        ToChild::Limits(limits) => Ok(limits),
        ToChild::Script(_) | ToChild::Reply(_) => {
            Err(io::Error::other("the parent did not begin with the limits"))
        }
    }
}
