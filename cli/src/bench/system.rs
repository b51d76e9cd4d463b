//! A whole system to measure on, and who submits to it.

use std::process::Stdio;
use std::time::Duration;

use rhizome_model::api::DeploymentView;
use rhizome_model::{
    Code, DeleteDocument, DeploymentDocument, DeploymentId, Failure, Name, Phase, Placement,
    Version, payload_type,
};
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

const READY: Duration = Duration::from_secs(120);
const LIFETIME_SECS: i64 = 3600;

/// The system that runs, or one of our own for this.
pub(super) async fn on_a_system<T>(
    globals: &Globals,
    measure: impl AsyncFnOnce(&Globals, &Session) -> Result<T, Error>,
) -> Result<T, Error> {
    match Session::open(globals) {
        Ok(session) => measure(globals, &session).await,
        Err(failure) if failure.code == Code::Unavailable => {
            output::note("no system runs: starting one for this");
            let mut own = OwnSystem::start().await?;
            let globals = Globals { json: globals.json, ..own.globals() };
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

/// Deploys one script under one name again and again.
pub(super) struct Submitter<'a> {
    session: &'a Session,
    id: DeploymentId,
    version: u64,
    placement: Placement,
    script: String,
}

impl<'a> Submitter<'a> {
    pub(super) async fn open(
        session: &'a Session,
        name: &str,
        script: &str,
    ) -> Result<Self, Failure> {
        let account = session.coord.account().await?;
        let name: Name = name.parse().map_err(|e| internal("a name", &e))?;
        let id = DeploymentId { account, name };
        let version = match session.coord.deployment(&id).await {
            Ok(view) => view.version.0,
            Err(failure) if failure.code == Code::NotFound => 0,
            Err(failure) => return Err(failure),
        };
        let nodes = session.coord.place(1).await?.nodes.iter().map(|n| n.id).collect();
        Ok(Self { session, id, version, placement: Placement { nodes }, script: script.into() })
    }

    pub(super) async fn deploy_times(&mut self, times: u64) -> Result<(), Failure> {
        for _ in 0..times {
            self.deploy().await?;
        }
        Ok(())
    }

    pub(super) async fn deploy(&mut self) -> Result<DeploymentView, Failure> {
        self.version += 1;
        let document = DeploymentDocument {
            account: self.id.account,
            name: self.id.name.clone(),
            version: Version(self.version),
            network: self.session.profile.network.clone(),
            script: self.script.clone(),
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

    pub(super) async fn delete(&mut self) -> Result<DeploymentView, Failure> {
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
    ) -> Result<DeploymentView, Failure> {
        let payload =
            serde_json::to_vec(document).map_err(|e| internal("cannot write the document", &e))?;
        let envelope = self.session.sign(kind, &payload)?;
        let submitted = self.session.coord.submit(envelope.to_json().into_bytes()).await?;
        let ended = follow(&self.session.coord, &submitted, goal, &mut Reporter::new(true)).await?;
        if ended.view.phase == wanted {
            Ok(ended.view)
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
pub(super) struct OwnSystem {
    dev: Child,
    folder: std::path::PathBuf,
}

impl OwnSystem {
    pub(super) async fn start() -> Result<Self, Failure> {
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

    /// To reach it with.
    pub(super) fn globals(&self) -> Globals {
        Globals { state: Some(self.folder.clone()), ..Globals::default() }
    }

    pub(super) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    pub(super) async fn stop(&mut self) {
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
