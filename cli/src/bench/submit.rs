//! `rhizome bench submit`: deployments of `output("ok", 1);`, from signing to the result in hand.
//!
//! Latency is measured one at a time, throughput with several at once; each is a new version of a
//! deployment, so that nothing piles up. Without a system that runs, one is started for it.

use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use rhizome_model::{
    Code, DeleteDocument, DeploymentDocument, DeploymentId, Failure, Name, Phase, Placement,
    Version, payload_type,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::cli::Globals;
use crate::coord::Session;
use crate::error::{Error, internal};
use crate::follow::follow;
use crate::output;
use crate::progress::Goal;
use crate::render::reporter::Reporter;
use crate::services::program;

const SCRIPT: &str = "output(\"ok\", 1);";
const READY: Duration = Duration::from_secs(120);
const LIFETIME_SECS: i64 = 3600;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome bench submit --count 500 --json")]
pub struct Args {
    /// Deployments that are measured one at a time.
    #[arg(long, default_value_t = 200, value_name = "N")]
    count: u64,
    /// Deployments before anything is measured.
    #[arg(long, default_value_t = 20, value_name = "N")]
    warmup: u64,
    /// Deployments under way at a time when throughput is measured.
    #[arg(long, default_value_t = 16, value_name = "N")]
    parallel: u64,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    on_a_system(globals, async |globals, session| measure(&args, globals, session).await).await
}

/// Deployments per second, so many at a time.
pub(super) async fn throughput(globals: &Globals, lanes: u64, count: u64) -> Result<f64, Error> {
    let measure = async |_: &Globals, session: &Session| {
        let mut submitters = Vec::new();
        for lane in 0..lanes {
            submitters.push(Submitter::open(session, lane).await?);
        }
        try_join_all(submitters.iter_mut().map(Submitter::deploy)).await?;
        let each = (count / lanes).max(1);
        let begun = Instant::now();
        try_join_all(submitters.iter_mut().map(|s| s.deploy_times(each))).await?;
        let per_s = (each * lanes) as f64 / begun.elapsed().as_secs_f64();
        try_join_all(submitters.iter_mut().map(Submitter::delete)).await?;
        Ok(per_s)
    };
    on_a_system(globals, measure).await
}

/// The system that runs, or one of our own for this.
async fn on_a_system<T>(
    globals: &Globals,
    measure: impl AsyncFnOnce(&Globals, &Session) -> Result<T, Error>,
) -> Result<T, Error> {
    match Session::open(globals) {
        Ok(session) => measure(globals, &session).await,
        Err(failure) if failure.code == Code::Unavailable => {
            output::note("no system runs: starting one for this");
            let mut own = OwnSystem::start().await?;
            let globals = Globals {
                state: Some(own.folder.clone()),
                json: globals.json,
                ..Globals::default()
            };
            let result = match Session::open(&globals) {
                Ok(session) => measure(&globals, &session).await,
                Err(failure) => Err(failure.into()),
            };
            own.stop().await;
            result
        }
        Err(failure) => Err(failure.into()),
    }
}

async fn measure(args: &Args, globals: &Globals, session: &Session) -> Result<ExitCode, Error> {
    let lanes = args.parallel.max(1);
    let mut submitters = Vec::new();
    for lane in 0..lanes {
        submitters.push(Submitter::open(session, lane).await?);
    }
    for _ in 0..args.warmup {
        submitters[0].deploy().await?;
    }
    let mut latencies = Vec::new();
    for _ in 0..args.count.max(1) {
        let begun = Instant::now();
        submitters[0].deploy().await?;
        latencies.push(begun.elapsed());
    }
    latencies.sort_unstable();

    let each = (args.count / lanes).max(1);
    let begun = Instant::now();
    try_join_all(submitters.iter_mut().map(|s| s.deploy_times(each))).await?;
    let per_s = (each * lanes) as f64 / begun.elapsed().as_secs_f64();
    try_join_all(submitters.iter_mut().map(Submitter::delete)).await?;

    let p50_ms = percentile(&latencies, 0.50);
    let p99_ms = percentile(&latencies, 0.99);
    if globals.json {
        output::json(&json!({
            "count": latencies.len(), "p50_ms": p50_ms, "p99_ms": p99_ms,
            "parallel": lanes, "per_s": (per_s * 10.0).round() / 10.0,
        }));
    } else {
        output::line(format_args!(
            "submit to result: p50 {p50_ms} ms, p99 {p99_ms} ms, one at a time"
        ));
        output::line(format_args!("{per_s:.0} per second, {lanes} at a time"));
    }
    Ok(ExitCode::SUCCESS)
}

/// In milliseconds, to a hundredth.
pub(super) fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let rank = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len());
    (sorted[rank - 1].as_secs_f64() * 100_000.0).round() / 100.0
}

/// Deploys one name again and again.
struct Submitter<'a> {
    session: &'a Session,
    id: DeploymentId,
    version: u64,
    placement: Placement,
}

impl<'a> Submitter<'a> {
    async fn open(session: &'a Session, lane: u64) -> Result<Self, Failure> {
        let account = session.coord.account().await?;
        let name: Name = format!("bench-{lane}").parse().map_err(|e| internal("a name", &e))?;
        let id = DeploymentId { account, name };
        let version = match session.coord.deployment(&id).await {
            Ok(view) => view.version.0,
            Err(failure) if failure.code == Code::NotFound => 0,
            Err(failure) => return Err(failure),
        };
        let nodes = session.coord.place(1).await?.nodes.iter().map(|n| n.id).collect();
        Ok(Self { session, id, version, placement: Placement { nodes } })
    }

    async fn deploy_times(&mut self, times: u64) -> Result<(), Failure> {
        for _ in 0..times {
            self.deploy().await?;
        }
        Ok(())
    }

    async fn deploy(&mut self) -> Result<(), Failure> {
        self.version += 1;
        let document = DeploymentDocument {
            account: self.id.account,
            name: self.id.name.clone(),
            version: Version(self.version),
            network: self.session.profile.network.clone(),
            script: SCRIPT.into(),
            params: Default::default(),
            placement: self.placement.clone(),
            policy: Default::default(),
            not_before: None,
            expires: rhizome_service::clock::now_secs() + LIFETIME_SECS,
            nonce: nonce(),
            secrets: Default::default(),
            cosigners: Vec::new(),
            required_weight: 1,
        };
        self.see_through(payload_type::DEPLOYMENT, &document, Goal::Deployed, Phase::Ready).await
    }

    async fn delete(&mut self) -> Result<(), Failure> {
        let document = DeleteDocument {
            account: self.id.account,
            name: self.id.name.clone(),
            version: Version(self.version),
            network: self.session.profile.network.clone(),
            not_before: None,
            expires: rhizome_service::clock::now_secs() + LIFETIME_SECS,
            nonce: nonce(),
        };
        self.see_through(payload_type::DELETE, &document, Goal::Deleted, Phase::Deleted).await
    }

    async fn see_through(
        &self,
        kind: &str,
        document: &impl serde::Serialize,
        goal: Goal,
        wanted: Phase,
    ) -> Result<(), Failure> {
        let payload =
            serde_json::to_vec(document).map_err(|e| internal("cannot write the document", &e))?;
        let envelope = self.session.sign(kind, &payload)?;
        let submitted = self.session.coord.submit(envelope.to_json().into_bytes()).await?;
        let ended = follow(&self.session.coord, &submitted, goal, &mut Reporter::new(true)).await?;
        if ended.view.phase == wanted {
            Ok(())
        } else {
            let message = format!("{} is {} instead of {wanted}", self.id, ended.view.phase);
            Err(Failure::new(Code::Internal, message))
        }
    }
}

fn nonce() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A `rhizome dev` of our own, on a folder of our own.
struct OwnSystem {
    dev: Child,
    folder: std::path::PathBuf,
}

impl OwnSystem {
    async fn start() -> Result<Self, Failure> {
        let folder = std::env::temp_dir().join(format!("rhizome-bench-{}", nonce()));
        let mut dev = Command::new(program()?)
            .args(["dev", "--state"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| internal("cannot start `rhizome dev`", &e))?;
        let mut line = String::new();
        if let Some(stdout) = dev.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            let _ = tokio::time::timeout(READY, stdout.read_line(&mut line)).await;
        }
        let mut own = Self { dev, folder };
        if line.starts_with("ready") {
            Ok(own)
        } else {
            own.stop().await;
            Err(Failure::new(
                Code::Unavailable,
                "`rhizome dev` did not become ready; its words are above",
            ))
        }
    }

    async fn stop(&mut self) {
        if let Some(pid) = self.dev.id() {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        }
        let ended = self.dev.wait().await;
        // Nothing is mounted in it any more only when it ended well.
        if ended.is_ok_and(|status| status.success()) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let sorted: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 0.5), 50.0);
        assert_eq!(percentile(&sorted, 0.99), 99.0);
        assert_eq!(percentile(&sorted[..1], 0.99), 1.0);
    }
}
