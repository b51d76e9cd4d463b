//! `rhizome deploy`: a script, signed, submitted and watched.

use std::process::ExitCode;
use std::time::Instant;

use rhizome_model::{TraceId, payload_type};

use crate::cli::Globals;
use crate::coord::Session;
use crate::document::{DocumentArgs, prepare};
use crate::error::{Error, internal};
use crate::progress::Goal;
use crate::submission::Submission;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    rhizome deploy demo.rhai --name demo\n  \
    rhizome deploy web.rhai --name web --count 2 --param replicas=3 --secret db=@password.txt\n  \
    rhizome deploy web.rhai --name web --json | jq .outputs")]
pub struct Args {
    #[command(flatten)]
    pub document: DocumentArgs,
    /// Do not wait for the end: coord keeps it going.
    #[arg(long)]
    pub detach: bool,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let begun = Instant::now();
    let session = Session::open(globals)?;
    let document = prepare(&args.document, &session).await?;
    let payload =
        serde_json::to_vec(&document).map_err(|e| internal("cannot write the document", &e))?;
    let envelope = session.sign(payload_type::DEPLOYMENT, &payload)?;
    let submitted = session.coord.submit(envelope.to_json().into_bytes()).await?;
    let trace = Some(TraceId::of_payload(&payload));
    let submission =
        Submission { submitted, goal: Goal::Deployed, begun, json: globals.json, trace };
    if args.detach { Ok(submission.detach()) } else { submission.watch(&session.coord).await }
}
