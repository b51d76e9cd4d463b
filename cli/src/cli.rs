//! The command line: global options, and one variant per command.
//!
//! To add a command: a file with `pub struct Args` and `pub async fn run(Args, &Globals)`, a variant
//! of [`Command`], an arm of [`Command::run`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rhizome_model::Action;

use crate::commands as c;
use crate::error::Error;
use crate::profile::KeyChoice;
use crate::{bench, dev, services};

/// Deploy signed scripts as machines, volumes and databases.
#[derive(Debug, Parser)]
#[command(
    name = "rhizome",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 success, 1 the deployment or job failed, 2 misuse, 3 refused, \
                  4 a service cannot be reached.\n\
                  Configuration: rhizome.toml < RHIZOME_* < flags."
)]
pub struct Cli {
    #[command(flatten)]
    pub globals: Globals,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command can be told. Without `--coord`, the running `rhizome dev` of `--state` says
/// where coord and ledger are, which network it is, and with which key.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Where coord listens, for example <http://127.0.0.1:8080>.
    #[arg(long, global = true, env = "RHIZOME_COORD", value_name = "URL", hide_env_values = true)]
    pub coord: Option<String>,
    /// Where the ledger listens; several addresses of one ledger with commas between.
    #[arg(long, global = true, env = "RHIZOME_LEDGER", value_name = "URL", hide_env_values = true)]
    pub ledger: Option<String>,
    /// The key that signs: a key file, `agent:COMMENT` for one that your ssh-agent keeps, or
    /// `node:STATE` for this node's own [default: ~/.config/rhizome/key].
    #[arg(long, global = true, env = "RHIZOME_KEY", value_name = "KEY", hide_env_values = true)]
    pub key: Option<KeyChoice>,
    /// The state folder of a `rhizome dev` [default: ~/.local/share/rhizome/dev].
    #[arg(long, global = true, env = "RHIZOME_STATE", value_name = "DIR", hide_env_values = true)]
    pub state: Option<PathBuf>,
    /// The network that signatures count on: dev, test or main
    /// [default: what `rhizome dev` is, else main].
    #[arg(
        long,
        global = true,
        env = "RHIZOME_NETWORK",
        value_name = "NAME",
        hide_env_values = true
    )]
    pub network: Option<String>,
    /// Print JSON (docs/json.md) and nothing else.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log to standard error, as a tracing filter such as `info` or `rhizome_queue=debug`
    /// [default: info for services, else warn].
    #[arg(long, global = true, env = "RHIZOME_LOG", value_name = "FILTER", hide_env_values = true)]
    pub log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make, show and import the key that signs.
    Key(c::key::Args),
    /// Register and show the account of the key.
    Account(c::account::Args),
    /// Find mistakes in scripts without a server.
    Check(c::check::Args),
    /// Show what a deploy would change, without changing anything.
    Plan(c::plan::Args),
    /// Print the deployment document of a script, unsigned.
    Document(c::document::Args),
    /// Sign a script, submit it and watch it become resources.
    Deploy(c::deploy::Args),
    /// List deployments.
    List(c::list::Args),
    /// Show a deployment with its resources.
    Show(c::show::Args),
    /// What happened to a deployment.
    Events(c::events::Args),
    /// What a resource printed.
    Logs(c::logs::Args),
    /// Run a command inside a resource.
    Exec(c::exec::Args),
    /// Start a machine that was stopped or has ended.
    Start(c::power::Args),
    /// Stop a machine; it stays stopped until it is started.
    Stop(c::power::Args),
    /// Stop a machine and start it.
    Restart(c::power::Args),
    /// Keep what a volume holds now under a name.
    Snapshot(c::snapshot::Args),
    /// Bring a volume back to what a snapshot holds.
    Restore(c::restore::Args),
    /// Give a volume or a machine another size, in place.
    Resize(c::resize::Args),
    /// Delete a deployment.
    Delete(c::delete::Args),
    /// Sign a document: makes a DSSE envelope.
    Sign(c::sign::Args),
    /// Submit a signed envelope.
    Submit(c::submit::Args),
    /// Check the signatures of an envelope.
    Verify(c::verify::Args),
    /// Say whom a farm is open to, approve of its nodes.
    Farm(c::farm::Args),
    /// Grant accounts a part of a closed farm.
    Grant(c::grant::Args),
    /// List and register coordinators.
    Coordinators(c::coordinators::Args),
    /// List nodes.
    Nodes(c::nodes::Args),
    /// Show a node (`node ID`), or be one: identity manager, supervisor and runners.
    Node(Box<c::node::Args>),
    /// Print the address of a resource on a node, without asking anybody.
    Address(c::address::Args),
    /// Show the job queues of nodes, by pool and account.
    Queues(c::queues::Args),
    /// Show a job with every attempt at it; do it again, cancel it, release it.
    Job(c::job::Args),
    /// Show the runners of nodes; scale, drain, pause and resume them.
    Runners(c::runners::Args),
    /// Show and set what accounts may use of a node's runners.
    Limits(c::limits::Args),
    /// Print the script API as definitions for editors (.d.rhai).
    Definitions(c::definitions::Args),
    /// Print the table of the script API (Markdown).
    Reference(c::reference::Args),
    /// Build the image that a node boots from.
    Image(c::image::Args),
    /// Run the whole system on this machine.
    Dev(dev::Args),
    /// Measure the system.
    Bench(bench::Args),
    /// Serve the registry of accounts, farms and nodes.
    Ledger(services::ledger::Args),
    /// Take signed envelopes, route them to nodes and follow them to their end.
    Coord(services::coord::Args),
    /// Verify, admit and enqueue deployments on a node; run its runners.
    Supervisor(services::supervisor::Args),
    /// Take jobs of queues and do them.
    Runner(services::runner::Args),
}

impl Command {
    pub async fn run(self, globals: &Globals) -> Result<ExitCode, Error> {
        match self {
            Self::Key(args) => c::key::run(args, globals).await,
            Self::Account(args) => c::account::run(args, globals).await,
            Self::Check(args) => c::check::run(args, globals).await,
            Self::Plan(args) => Box::pin(c::plan::run(args, globals)).await,
            Self::Document(args) => Box::pin(c::document::run(args, globals)).await,
            Self::Deploy(args) => Box::pin(c::deploy::run(args, globals)).await,
            Self::List(args) => c::list::run(args, globals).await,
            Self::Show(args) => c::show::run(args, globals).await,
            Self::Events(args) => Box::pin(c::events::run(args, globals)).await,
            Self::Logs(args) => c::logs::run(args, globals).await,
            Self::Exec(args) => c::exec::run(args, globals).await,
            Self::Start(args) => Box::pin(c::power::run(args, Action::Start, globals)).await,
            Self::Stop(args) => Box::pin(c::power::run(args, Action::Stop, globals)).await,
            Self::Restart(args) => Box::pin(c::power::run(args, Action::Restart, globals)).await,
            Self::Snapshot(args) => Box::pin(c::snapshot::run(args, globals)).await,
            Self::Restore(args) => Box::pin(c::restore::run(args, globals)).await,
            Self::Resize(args) => Box::pin(c::resize::run(args, globals)).await,
            Self::Delete(args) => Box::pin(c::delete::run(args, globals)).await,
            Self::Sign(args) => c::sign::run(args, globals).await,
            Self::Submit(args) => Box::pin(c::submit::run(args, globals)).await,
            Self::Verify(args) => c::verify::run(args, globals).await,
            Self::Farm(args) => c::farm::run(args, globals).await,
            Self::Grant(args) => c::grant::run(args, globals).await,
            Self::Coordinators(args) => c::coordinators::run(args, globals).await,
            Self::Nodes(args) => c::nodes::run(args, globals).await,
            Self::Node(args) => c::node::run(*args, globals).await,
            Self::Address(args) => c::address::run(&args, globals),
            Self::Queues(args) => c::queues::run(args, globals).await,
            Self::Job(args) => c::job::run(args, globals).await,
            Self::Runners(args) => c::runners::run(args, globals).await,
            Self::Limits(args) => c::limits::run(args, globals).await,
            Self::Definitions(args) => c::definitions::run(args, globals).await,
            Self::Reference(args) => c::reference::run(args, globals).await,
            Self::Image(args) => Box::pin(c::image::run(args, globals)).await,
            Self::Dev(args) => Box::pin(dev::run(args, globals)).await,
            Self::Bench(args) => Box::pin(bench::run(args, globals)).await,
            Self::Ledger(args) => Box::pin(services::ledger::run(args, globals)).await,
            Self::Coord(args) => Box::pin(services::coord::run(args, globals)).await,
            Self::Supervisor(args) => Box::pin(services::supervisor::run(args, globals)).await,
            Self::Runner(args) => Box::pin(services::runner::run(args, globals)).await,
        }
    }

    /// Whether it shares its machine with the redis-server that it talks to all the time.
    pub fn is_beside_redis(&self) -> bool {
        match self {
            Self::Supervisor(_) | Self::Runner(_) => true,
            Self::Bench(args) => args.is_of_a_queue(),
            _ => false,
        }
    }

    /// Whether it goes on until it is told to stop: then it says what it does.
    pub fn is_service(&self) -> bool {
        match self {
            Self::Coord(_) | Self::Supervisor(_) | Self::Runner(_) => true,
            Self::Node(args) => args.is_service(),
            Self::Ledger(args) => args.is_service(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn clap_finds_no_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        let cli = Cli::command();
        for command in cli.get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("rhizome "), "{} shows no example", command.get_name());
        }
    }
}
