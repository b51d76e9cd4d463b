//! Everything that is wrong with a script, without a node.

use std::collections::BTreeMap;

use rhizome_model::{AccountId, Code, DeploymentId, Failure, Limits, Name};
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
        context: Context::nowhere(params, DeploymentId { account: AccountId(1), name }),
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
