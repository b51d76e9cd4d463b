//! `rhizome bench`: what the system does per second, as its users see it.

mod deep;
mod ledger;
mod load;
mod machine;
mod queue;
mod script;
mod submit;
mod system;

use std::process::ExitCode;

use clap::Subcommand;

use crate::cli::Globals;
use crate::error::Error;

/// Measure the system.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome bench submit --json")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A ledger under the signed uptime reports of a fleet.
    Ledger(ledger::Args),
    /// Containers and virtual machines: from a received script to one that runs.
    Machine(machine::Args),
    /// The job queue of a node: rates, latency, cost and recovery, beside raw Redis.
    Queue(queue::Args),
    /// What journals cost, scripts of many resources, and deployments per second.
    Script(script::Args),
    /// From submitting a script that does nothing to its result.
    Submit(submit::Args),
}

impl Args {
    /// Whether it is what a supervisor and its runners do on a node.
    pub fn is_of_a_queue(&self) -> bool {
        matches!(self.what, What::Queue(_))
    }
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    match args.what {
        What::Ledger(args) => Box::pin(ledger::run(args, globals)).await,
        What::Machine(args) => Box::pin(machine::run(args, globals)).await,
        What::Queue(args) => Box::pin(queue::run(args, globals)).await,
        What::Script(args) => Box::pin(script::run(args, globals)).await,
        What::Submit(args) => Box::pin(submit::run(args, globals)).await,
    }
}
