//! An operation from its arguments to the end of its job: what `start`, `stop`, `restart`,
//! `snapshot`, `restore` and `resize` have in common, and `submit` of an envelope of that kind.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rhizome_model::api::{JobView, TaskView};
use rhizome_model::{
    Action, Backoff, Class, Code, Failure, JobState, NodeId, OperationDocument, Phase, payload_type,
};
use rhizome_service::random::jittered;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Globals;
use crate::coord::{Coord, Place, Session};
use crate::document::{Lifetime, nonce};
use crate::error::{Error, internal, misuse};
use crate::output;
use crate::refs::ResourceRef;
use crate::render::{self, queue};

/// Between two looks at a job.
const LOOK: Backoff = Backoff::new(Duration::from_millis(40), Duration::from_secs(1));
/// A node or coord that is away for longer while we wait is given up; the job goes on.
const PATIENCE: Duration = Duration::from_secs(60);
/// 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// What every operation is told.
#[derive(Debug, clap::Args)]
pub struct OperationArgs {
    /// The resource: NAME/RESOURCE, or ACCOUNT/NAME/RESOURCE.
    pub resource: ResourceRef,
    /// The node, where several have a resource of this name.
    #[arg(long, value_name = "ID")]
    pub node: Option<NodeId>,
    /// How long the signature can be used, such as 10m, 24h or 7d; at most 30d.
    #[arg(long, value_name = "TIME", default_value = "10m")]
    pub expires: Lifetime,
    /// Do not wait for the end: the node does it, and `rhizome job` shows how it went.
    #[arg(long)]
    pub detach: bool,
}

/// Signs it, hands it over, and waits unless told otherwise.
pub async fn perform(
    args: OperationArgs,
    action: Action,
    globals: &Globals,
) -> Result<ExitCode, Error> {
    let session = Session::open(globals)?;
    let coord = &session.coord;
    let place = coord.place_of(args.resource, args.node).await?;
    let task = task_of(coord, &place).await?;
    let document = OperationDocument {
        account: place.deployment.account,
        name: place.deployment.name,
        version: task.version,
        node: task.node,
        resource: place.resource,
        action,
        network: session.profile.network.clone(),
        not_before: None,
        expires: rhizome_service::clock::now_secs() + args.expires.0,
        nonce: nonce(),
    };
    let payload =
        serde_json::to_vec(&document).map_err(|e| internal("cannot write the document", &e))?;
    let envelope = session.sign(payload_type::OPERATION, &payload)?;
    let job = coord.operate(envelope.to_json().into_bytes()).await?;
    if args.detach { Ok(detach(&job, globals.json)) } else { watch(coord, job, globals.json).await }
}

/// Nobody waits: says which job does it.
pub fn detach(job: &JobView, json: bool) -> ExitCode {
    if json {
        output::json(job);
    } else {
        output::line(format!("{}: job {} on node {}", subject(job), job.id, job.node));
    }
    ExitCode::SUCCESS
}

/// Waits for the end, or for Ctrl-C.
pub async fn watch(coord: &Coord, job: JobView, json: bool) -> Result<ExitCode, Error> {
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|e| internal("cannot listen for Ctrl-C", &e))?;
    let (id, node) = (job.id, job.node);
    let ended = tokio::select! {
        ended = end_of(coord, job, json) => ended?,
        _ = interrupt.recv() => {
            output::note(format!("it goes on without us; see it with: rhizome job {id} --node {node}"));
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    if ended.state != JobState::Succeeded {
        return Err(why(&ended));
    }
    if json {
        output::json(&ended);
    } else {
        let took = ended.ended_at.map_or(0, |end| end.saturating_sub(ended.submitted_at));
        let took = render::duration(u64::try_from(took).unwrap_or(0));
        output::line(format!("{}: done after {took}", subject(&ended)));
    }
    Ok(ExitCode::SUCCESS)
}

async fn end_of(coord: &Coord, mut job: JobView, json: bool) -> Result<JobView, Failure> {
    let (mut looks, mut said, mut away): (u32, _, Option<Instant>) = (0, None, None);
    while !job.state.is_ended() {
        if !json && said != Some(job.state) {
            output::note(format!("{}: {}", subject(&job), queue::state(job.state)));
            said = Some(job.state);
        }
        looks = looks.saturating_add(1);
        tokio::time::sleep(jittered(LOOK, looks)).await;
        match coord.job(job.node, job.id).await {
            Ok(now) => (job, away) = (now, None),
            Err(failure) if failure.code.class() != Class::Unreachable => return Err(failure),
            Err(failure) if away.get_or_insert_with(Instant::now).elapsed() > PATIENCE => {
                return Err(failure);
            }
            Err(_) => {}
        }
    }
    Ok(job)
}

/// Why it did not succeed. The services were reached and the command was understood: what is left is
/// refused, or failed.
fn why(job: &JobView) -> Error {
    let failure = job.failure.clone().unwrap_or_else(|| {
        let message = format!("{}: {}", subject(job), queue::state(job.state));
        Failure::new(Code::Cancelled, message)
    });
    let seen = format!("see it with: rhizome job {} --node {}", job.id, job.node);
    let failure = if failure.detail.is_none() { failure.with_detail(seen) } else { failure };
    let class = match failure.code.class() {
        Class::Refused => Class::Refused,
        Class::Failed | Class::Misuse | Class::Unreachable => Class::Failed,
    };
    Error { failures: vec![failure], exit: class.exit_code() }
}

fn subject(job: &JobView) -> String {
    let deployment = job.deployment.as_ref().map(ToString::to_string).unwrap_or_default();
    let resource = job.resource.as_ref().map(ToString::to_string).unwrap_or_default();
    format!("{} {deployment}/{resource}", job.work)
}

/// The task that has the resource.
async fn task_of(coord: &Coord, place: &Place) -> Result<TaskView, Failure> {
    let Place { deployment, resource, node } = place;
    let mut tasks = coord.deployment(deployment).await?.tasks;
    tasks.retain(|t| t.phase != Phase::Deleted && node.is_none_or(|n| n == t.node));
    if tasks.len() > 1 {
        tasks.retain(|t| t.resources.iter().any(|r| &r.resource.name == resource));
    }
    let several: Vec<_> = tasks.iter().map(|t| t.node.to_string()).collect();
    match (tasks.pop(), several.len()) {
        (Some(task), 1) => Ok(task),
        (Some(_), _) => {
            let nodes = several.join(", ");
            Err(misuse(format!(
                "{deployment}/{resource} is on the nodes {nodes}: choose one with --node"
            )))
        }
        (None, _) => {
            let message = format!("there is no resource {deployment}/{resource}");
            Err(Failure::new(Code::NotFound, message))
        }
    }
}
