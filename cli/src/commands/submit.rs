//! `rhizome submit`: hands over an envelope that was signed before, byte for byte.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use rhizome_model::{Envelope, MAX_ENVELOPE_BYTES, TraceId, payload_type};
use rhizome_service::Client;

use super::read_input;
use crate::cli::Globals;
use crate::coord::{self, Session};
use crate::error::Error;
use crate::operation;
use crate::profile::Profile;
use crate::progress::Goal;
use crate::submission::Submission;

/// What is larger is sent nevertheless, so that coord says its own word; but not without an end.
const LIMIT: usize = MAX_ENVELOPE_BYTES * 4;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome submit envelope.json")]
pub struct Args {
    /// The envelope; - reads standard input.
    pub envelope: PathBuf,
    /// Do not wait for the end: coord keeps it going. This needs no key.
    #[arg(long)]
    pub detach: bool,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let begun = Instant::now();
    let bytes = read_input(&args.envelope, LIMIT)?;
    // What it is for decides what we wait for. One that we cannot read coord refuses.
    let envelope = Envelope::from_json(&bytes).ok();
    let is = |kind| envelope.as_ref().is_some_and(|e| e.payload_type == kind);
    if is(payload_type::OPERATION) {
        return operate(bytes, args.detach, globals).await;
    }
    let deletes = is(payload_type::DELETE);
    let trace = envelope.map(|e| TraceId::of_payload(&e.payload));
    let goal = if deletes { Goal::Deleted } else { Goal::Deployed };
    let submission = |submitted| Submission { submitted, goal, begun, json: globals.json, trace };
    if args.detach {
        let coord = Client::new("coord", Profile::load(globals)?.coord()?)?;
        return Ok(submission(coord::submit(&coord, bytes).await?).detach());
    }
    // The key that watches is loaded before anything is handed over.
    let session = Session::open(globals)?;
    submission(session.coord.submit(bytes).await?).watch(&session.coord).await
}

async fn operate(bytes: Vec<u8>, detach: bool, globals: &Globals) -> Result<ExitCode, Error> {
    if detach {
        let coord = Client::new("coord", Profile::load(globals)?.coord()?)?;
        let job = coord::operate(&coord, bytes).await?;
        return Ok(operation::detach(&job, globals.json));
    }
    let session = Session::open(globals)?;
    let job = session.coord.operate(bytes).await?;
    operation::watch(&session.coord, job, globals.json).await
}
