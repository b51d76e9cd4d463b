//! `rhizome grant`: what an account may use of a closed farm.

use std::collections::BTreeSet;
use std::process::ExitCode;

use rhizome_model::api::UsageView;
use rhizome_model::statement::{Farm, FarmUse, Grant, GrantId};
use rhizome_model::{AccountId, Bytes, Capacity, Cpu, FarmId, NodeId};
use rhizome_service::clock;
use serde::Serialize;
use serde_json::json;

use crate::cli::Globals;
use crate::error::Error;
use crate::ledger::Ledger;
use crate::output;
use crate::render::farm;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome grant give 7 --farm homefarm --cpu 2 --memory 4GiB --disk 50GiB --days 30\n  \
    rhizome grant list --farm homefarm\n  rhizome grant revoke 3 --farm homefarm")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Let an account use so much of a farm, all its nodes together, or of one node.
    Give {
        account: AccountId,
        /// The farm's name or number.
        #[arg(long, value_name = "FARM")]
        farm: String,
        /// Of this node only.
        #[arg(long, value_name = "ID")]
        node: Option<NodeId>,
        #[arg(long, value_name = "N", value_parser = cpu)]
        cpu: Cpu,
        #[arg(long, value_name = "SIZE")]
        memory: Bytes,
        #[arg(long, value_name = "SIZE")]
        disk: Bytes,
        /// For so long; without it, until it is taken back.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        days: Option<u16>,
    },
    /// The grants of a farm that count, and what accounts use of those of the whole farm.
    List {
        #[arg(long, value_name = "FARM")]
        farm: String,
    },
    /// Take a grant back. What runs goes on; nothing new is taken.
    Revoke {
        grant: GrantId,
        #[arg(long, value_name = "FARM")]
        farm: String,
    },
}

fn cpu(text: &str) -> Result<Cpu, String> {
    serde_json::from_str(text).map_err(|e| e.to_string())
}

/// A grant, and if it is of a whole farm, what the account uses of all such grants that it has there.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    grant: &'a Grant,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_use: Option<Capacity>,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let ledger = Ledger::open(globals)?;
    let grants = match args.what {
        What::Give { account, farm, node, cpu, memory, disk, days } => {
            let id = ledger.farm(&farm).await?;
            let until = days.map(|days| clock::now_secs() + i64::from(days) * 86_400);
            let capacity = Capacity { cpu, memory, disk };
            let body =
                json!({ "account": account, "node": node, "capacity": capacity, "until": until });
            vec![ledger.post::<Grant>(&format!("/v2/farms/{id}/grants"), &body).await?]
        }
        What::List { farm } => {
            return list(&ledger, ledger.farm(&farm).await?, globals).await;
        }
        What::Revoke { grant, farm } => {
            let id = ledger.farm(&farm).await?;
            ledger.delete::<Farm>(&format!("/v2/farms/{id}/grants/{grant}")).await?.grants
        }
    };
    if globals.json {
        output::json(&grants);
    } else {
        print(&grants);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(grants: &[Grant]) {
    if grants.is_empty() {
        output::line("no grants");
    } else {
        output::line(farm::grants(grants));
    }
}

async fn list(ledger: &Ledger, id: FarmId, globals: &Globals) -> Result<ExitCode, Error> {
    let farm = ledger.get::<Farm>(&format!("/v2/farms/{id}")).await?;
    let used = used(&farm, &usage(ledger, id).await?);
    if globals.json {
        let of = |account| used.iter().find(|(a, _)| *a == account).map(|(_, used)| used.used());
        let in_use = |grant: &Grant| if grant.node.is_none() { of(grant.account) } else { None };
        let rows = farm.grants.iter().map(|grant| Row { grant, in_use: in_use(grant) });
        output::json(&rows.collect::<Vec<_>>());
        return Ok(ExitCode::SUCCESS);
    }
    print(&farm.grants);
    if !used.is_empty() {
        output::line("");
        output::line(farm::used(&used));
    }
    Ok(ExitCode::SUCCESS)
}

/// What accounts reserve of the farm's nodes.
async fn usage(ledger: &Ledger, id: FarmId) -> Result<Vec<UsageView>, Error> {
    const SIZE: usize = 1000;
    let mut all = Vec::new();
    for page in 1.. {
        let path = format!("/v2/farms/{id}/usage?page={page}&size={SIZE}");
        let rows = ledger.get::<Vec<UsageView>>(&path).await?;
        let last = rows.len() < SIZE;
        all.extend(rows);
        if last {
            break;
        }
    }
    Ok(all)
}

/// Of each account that the whole farm is granted to, or that has something of it all the same: what.
/// Of its owner nobody asks.
fn used(farm: &Farm, usage: &[UsageView]) -> Vec<(AccountId, FarmUse)> {
    let of_farm = farm.grants.iter().filter(|grant| grant.node.is_none()).map(|g| g.account);
    let accounts: BTreeSet<_> = of_farm.chain(usage.iter().map(|u| u.account)).collect();
    let now = clock::now_secs();
    let of = |account| {
        let reserved = usage.iter().filter(|u| u.account == account).map(|u| (u.node, u.capacity));
        (account, FarmUse::new(account, &farm.grants, reserved, now))
    };
    let counts = |(_, used): &(AccountId, FarmUse)| {
        used.granted() != Capacity::default() || used.used() != Capacity::default()
    };
    accounts.into_iter().filter(|a| *a != farm.owner).map(of).filter(counts).collect()
}

#[cfg(test)]
mod tests {
    use rhizome_model::statement::FarmAccess;

    use super::*;

    #[test]
    fn who_has_something_of_the_whole_farm_is_shown() {
        let each = |n: u32| Capacity {
            cpu: Cpu::cores(n),
            memory: Bytes::gib(n.into()),
            disk: Bytes::gib(n.into()),
        };
        let grant = |account, node: Option<u64>, n| Grant {
            id: 1,
            account: AccountId(account),
            node: node.map(NodeId),
            capacity: each(n),
            until: None,
        };
        let farm = Farm {
            id: FarmId(1),
            owner: AccountId(1),
            access: FarmAccess::Closed,
            coordinators: vec![],
            grants: vec![grant(2, None, 4), grant(2, Some(5), 1), grant(3, Some(5), 2)],
        };
        let on = |account, node, n| UsageView {
            account: AccountId(account),
            node: NodeId(node),
            capacity: each(n),
        };
        // 3 stays within what it has of node 5, 4 was granted something once, 1 is the owner.
        let usage = [on(1, 5, 9), on(2, 5, 3), on(2, 6, 1), on(3, 5, 2), on(4, 6, 1)];
        let shown: Vec<_> = used(&farm, &usage)
            .into_iter()
            .map(|(account, used)| (account.0, used.granted(), used.used()))
            .collect();
        assert_eq!(shown, [(2, each(4), each(3)), (4, each(0), each(1))]);
    }
}
