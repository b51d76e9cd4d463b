//! Everything that is wrong with a script, without a node.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use rhizome_model::{
    AccountId, Bytes, Capacity, Code, Cpu, DeploymentId, Failure, FarmId, Limits, Name, NodeFacts,
    NodeId, Version,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::plan::{Planner, without_waiting};
use crate::wire::Mode;
use crate::{Context, Sandboxes, Script, Stop};

/// What is wrong with a script: syntax, unknown functions and variables, wrong specs; those in
/// branches that are not taken too. What depends on a parameter that is not given stays unchecked.
pub async fn check(
    sandboxes: &Sandboxes,
    file: &str,
    source: &str,
    params: BTreeMap<String, Value>,
) -> Vec<Failure> {
    let name: Name = "check".parse().expect("a well-formed name");
    let script = Script {
        file: file.to_owned(),
        source: source.to_owned(),
        context: Context {
            params,
            node: imaginary_node(),
            deployment: DeploymentId { account: AccountId(1), name },
            version: Version(1),
            peers: Vec::new(),
        },
        limits: without_waiting(Limits::default()),
    };
    let planner = Planner::new(&script.context);
    let told = sandboxes.run(&script, Mode::Check, &planner, CancellationToken::new()).await;
    match told {
        Ok(told) => told.findings,
        Err(Stop::Failed(failure)) => vec![failure],
        Err(Stop::Unknown) => Vec::new(),
        Err(Stop::Aborted) => vec![Failure::new(Code::Cancelled, "the check was cancelled")],
    }
}

/// A node on which nothing is too large.
fn imaginary_node() -> NodeFacts {
    let plenty = Bytes(1 << 50);
    NodeFacts {
        id: NodeId(1),
        farm: FarmId(1),
        // Of the range of Mycelium's addresses.
        address: Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 2),
        capacity: Capacity { cpu: Cpu::cores(1024), memory: plenty, disk: plenty },
    }
}
