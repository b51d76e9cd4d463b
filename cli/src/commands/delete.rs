//! `rhizome delete`: the end of a deployment, signed like its beginning.

use std::process::ExitCode;
use std::time::Instant;

use rhizome_model::api::Submitted;
use rhizome_model::{DeleteDocument, Phase, TraceId, payload_type};

use crate::cli::Globals;
use crate::coord::Session;
use crate::document::{Lifetime, nonce};
use crate::error::{Error, internal};
use crate::progress::Goal;
use crate::refs::DeploymentRef;
use crate::submission::Submission;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome delete demo")]
pub struct Args {
    /// The deployment: NAME, or ACCOUNT/NAME.
    pub name: DeploymentRef,
    /// How long the signature can be used, such as 10m, 24h or 7d; at most 30d.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub expires: Lifetime,
    /// Do not wait for the end: coord keeps it going.
    #[arg(long)]
    pub detach: bool,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let begun = Instant::now();
    let session = Session::open(globals)?;
    let coord = &session.coord;
    let id = coord.resolve(&args.name).await?;
    let view = coord.deployment(&id).await?;
    let (goal, json) = (Goal::Deleted, globals.json);
    let submission = |submitted, trace| Submission { submitted, goal, begun, json, trace };
    if view.phase == Phase::Deleted {
        // Deleting what is gone is done: the same answer as after the first time.
        let nodes = view.tasks.iter().map(|t| t.node).collect();
        let (version, phase) = (view.version, view.phase);
        let gone = Submitted { deployment: id, version, phase, nodes, after: 0 };
        return Ok(submission(gone, None).detach());
    }
    let document = DeleteDocument {
        account: id.account,
        name: id.name,
        version: view.version,
        network: session.profile.network.clone(),
        not_before: None,
        expires: rhizome_service::clock::now_secs() + args.expires.0,
        nonce: nonce(),
    };
    let payload =
        serde_json::to_vec(&document).map_err(|e| internal("cannot write the document", &e))?;
    let envelope = session.sign(payload_type::DELETE, &payload)?;
    let submitted = coord.submit(envelope.to_json().into_bytes()).await?;
    let submission = submission(submitted, Some(TraceId::of_payload(&payload)));
    if args.detach { Ok(submission.detach()) } else { submission.watch(coord).await }
}
