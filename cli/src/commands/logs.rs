//! `rhizome logs`: what a resource printed, as it printed it.

use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::api::OutputChunk;
use rhizome_model::{Code, Failure, NodeId};
use serde_json::Value;

use crate::cli::Globals;
use crate::coord::{Next, Session};
use crate::error::Error;
use crate::output;
use crate::refs::ResourceRef;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome logs demo/web -f --tail 20")]
pub struct Args {
    /// The resource: NAME/RESOURCE, or ACCOUNT/NAME/RESOURCE.
    pub resource: ResourceRef,
    /// The node, where several have a resource of this name.
    #[arg(long, value_name = "ID")]
    pub node: Option<NodeId>,
    /// Go on with what comes, until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// How many of the last lines.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub tail: usize,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let coord = Session::open(globals)?.coord;
    let place = coord.place_of(args.resource, args.node).await?;
    let mut printer = Printer::new(globals.json);
    coord.logs(&place, args.tail, args.follow, |chunk| printer.take(chunk)).await?;
    printer.end()?;
    Ok(ExitCode::SUCCESS)
}

/// Puts a stream of output where it belongs, and keeps its end.
pub struct Printer {
    json: bool,
    end: Option<Result<Value, Failure>>,
}

impl Printer {
    pub fn new(json: bool) -> Self {
        Self { json, end: None }
    }

    pub fn take(&mut self, chunk: OutputChunk) -> Next {
        if self.json {
            output::json(&chunk);
        }
        match chunk {
            OutputChunk::Stdout { data } => self.bytes(&data, output::stdout),
            OutputChunk::Stderr { data } => self.bytes(&data, output::stderr),
            OutputChunk::Exit { result } => {
                self.end = Some(Ok(result));
                Next::Stop
            }
            OutputChunk::Failed { failure } => {
                self.end = Some(Err(failure));
                Next::Stop
            }
        }
    }

    fn bytes(&mut self, data: &str, print: fn(&[u8])) -> Next {
        match STANDARD.decode(data) {
            Ok(bytes) => {
                if !self.json {
                    print(&bytes);
                }
                Next::More
            }
            Err(e) => {
                let text = format!("coord sent output that is not base64: {e}");
                self.end = Some(Err(Failure::new(Code::Internal, text)));
                Next::Stop
            }
        }
    }

    /// What the stream ended with.
    pub fn end(self) -> Result<Value, Failure> {
        self.end.unwrap_or_else(|| Err(Failure::new(Code::Internal, "the output has no end")))
    }
}
