//! `rhizome resize`: gives a resource another size while it is in use.

use std::process::ExitCode;

use rhizome_model::{Action, Bytes};
use serde_json::{Map, json};

use crate::cli::Globals;
use crate::error::Error;
use crate::operation::{OperationArgs, perform};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rhizome resize demo/data --size 20GiB\n  \
    rhizome resize demo/web --cpu 2 --memory 1GiB\n\n\
    The next version of the deployment says again how large things are: change its script, too.")]
pub struct Args {
    #[command(flatten)]
    pub operation: OperationArgs,
    #[command(flatten)]
    pub to: To,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct To {
    /// The most that a volume can hold, such as 20GiB; not less than what it holds.
    #[arg(long)]
    pub size: Option<Bytes>,
    /// The processors of a machine; fractions are allowed.
    #[arg(long, value_name = "N")]
    pub cpu: Option<f64>,
    /// The memory of a machine, such as 512MiB.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// The most that the root file system of a machine can grow, such as 1GiB.
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<Bytes>,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let To { size, cpu, memory, disk } = args.to;
    let mut to = Map::new();
    for (field, value) in [("size", size), ("memory", memory), ("disk", disk)] {
        to.extend(value.map(|bytes| (field.to_owned(), json!(bytes))));
    }
    to.extend(cpu.map(|cpu| ("cpu".to_owned(), json!(cpu))));
    perform(args.operation, Action::Resize { to }, globals).await
}
