//! `rhizome limits`: what accounts may use of a node's runners.

use std::process::ExitCode;

use rhizome_model::api::AccountLimits;
use rhizome_model::{AccountId, NodeId};
use serde_json::json;

use super::queues::{ask_all, missing};
use super::runners::only;
use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::output;
use crate::render::queue;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rhizome limits\n  rhizome limits set default --concurrency 16\n  \
        rhizome limits set 7 --rate 5 --burst 20 --node 1"
)]
pub struct Args {
    /// Only of this node. To change something where there are several nodes, say which.
    #[arg(long, value_name = "ID", global = true)]
    node: Option<NodeId>,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show the limits.
    Show,
    /// Set the limits of an account; what is not given is unlimited.
    Set {
        /// The account's id, or `default`: all accounts that have no limits of their own.
        #[arg(value_parser = whose, value_name = "ACCOUNT|default")]
        account: String,
        /// Jobs of one queue that run at a time.
        #[arg(long, value_name = "N")]
        concurrency: Option<u32>,
        /// Jobs of one queue that start per second, on average.
        #[arg(long, value_name = "R")]
        rate: Option<f64>,
        /// Jobs that may start at once after a silence.
        #[arg(long, value_name = "B", requires = "rate")]
        burst: Option<u32>,
    },
}

fn whose(text: &str) -> Result<String, String> {
    match text {
        "default" => Ok(text.into()),
        id => match id.parse::<AccountId>() {
            Ok(account) => Ok(account.to_string()),
            Err(e) => Err(format!("an account's id, or 'default': {e}")),
        },
    }
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    match args.action {
        None | Some(Action::Show) => {
            let nodes = Vec::from_iter(args.node);
            let (answers, silent) = ask_all(&coord, nodes, |node| coord.limits(node)).await?;
            let of_node = |(node, limits): (NodeId, std::collections::BTreeMap<_, _>)| {
                limits.into_iter().map(move |(account, limits)| (node, account, limits))
            };
            let rows: Vec<_> = answers.into_iter().flat_map(of_node).collect();
            show(&rows, &missing(&silent), globals);
            Ok(super::queues::end(&silent, globals))
        }
        Some(Action::Set { account, concurrency, rate, burst }) => {
            let limits = AccountLimits { concurrency, rate_per_s: rate, burst };
            let node = only(&coord, args.node).await?;
            let limits = coord.set_limits(node, &account, &limits).await?;
            show(&[(node, account, limits)], &[], globals);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn show(
    rows: &[(NodeId, String, AccountLimits)],
    missing: &[serde_json::Value],
    globals: &Globals,
) {
    if globals.json {
        let row = |(node, account, limits): &(NodeId, String, AccountLimits)| {
            json!({
                "node": node, "account": account, "concurrency": limits.concurrency,
                "rate_per_s": limits.rate_per_s, "burst": limits.burst,
            })
        };
        let rows: Vec<_> = rows.iter().map(row).collect();
        output::json(&json!({ "limits": rows, "missing": missing }));
    } else if rows.is_empty() {
        output::line("no limits");
    } else {
        output::line(queue::limits(rows));
    }
}
