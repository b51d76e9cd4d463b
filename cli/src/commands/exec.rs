//! `rhizome exec`: a command inside a resource; its exit code is ours.

use std::process::ExitCode;

use rhizome_model::api::ExecRequest;
use rhizome_model::{Code, Failure, NodeId};
use serde_json::Value;

use super::logs::Printer;
use crate::cli::Globals;
use crate::coord::Session;
use crate::error::Error;
use crate::refs::ResourceRef;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome exec demo/web -- ls -l /data")]
pub struct Args {
    /// The resource: NAME/RESOURCE, or ACCOUNT/NAME/RESOURCE.
    pub resource: ResourceRef,
    /// The node, where several have a resource of this name.
    #[arg(long, value_name = "ID")]
    pub node: Option<NodeId>,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    let place = coord.place_of(args.resource, args.node).await?;
    let request = ExecRequest { command: args.command };
    let mut printer = Printer::new(globals.json);
    coord.exec(&place, &request, |chunk| printer.take(chunk)).await?;
    Ok(ExitCode::from(exit_code(&printer.end()?)?))
}

/// `{"exit_code": n}`.
fn exit_code(result: &Value) -> Result<u8, Failure> {
    result["exit_code"].as_u64().and_then(|code| u8::try_from(code).ok()).ok_or_else(|| {
        Failure::new(Code::Internal, format!("coord sent no exit code but {result}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_commands_exit_code_is_ours() {
        assert_eq!(exit_code(&json!({ "exit_code": 7 })), Ok(7));
        for bad in [json!({}), json!(null), json!({ "exit_code": 300 })] {
            assert!(exit_code(&bad).is_err());
        }
    }
}
