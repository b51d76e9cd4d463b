//! A host with a memory, and sandboxes that run this crate's own binary.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use async_trait::async_trait;
use rhizome_engine::{
    Context, Evaluation, Host, HostError, Peer, SandboxOptions, Sandboxes, Script, Stop,
};
use rhizome_model::{
    AccountId, Action, Bytes, Capacity, Cpu, DeploymentId, DesiredResource, Failure, FarmId,
    Limits, Name, NodeFacts, NodeId, Version, resource_address,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub const NODE: &str = "5d3:7a10:1:2:3:4:5:6";

pub fn sandboxes() -> Sandboxes {
    program(env!("CARGO_BIN_EXE_rhizome-sandbox"), &[])
}

pub fn program(program: &str, args: &[&str]) -> Sandboxes {
    Sandboxes::new(SandboxOptions {
        program: program.into(),
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        uid_gid: None,
    })
}

pub fn script(source: &str) -> Script {
    Script {
        file: "test.rhai".into(),
        source: source.into(),
        context: Context {
            params: BTreeMap::from([
                ("image".to_owned(), json!("file:///images/busybox.tar")),
                ("replicas".to_owned(), json!(3)),
            ]),
            node: NodeFacts {
                id: NodeId(7),
                farm: FarmId(2),
                address: NODE.parse().unwrap(),
                capacity: Capacity {
                    cpu: Cpu::cores(4),
                    memory: Bytes::gib(8),
                    disk: Bytes::gib(100),
                },
            },
            deployment: DeploymentId { account: AccountId(1), name: "demo".parse().unwrap() },
            version: Version(3),
            peers: vec![Peer { node: NodeId(8), address: "5d3:7a10:1:3::8".parse().unwrap() }],
        },
        limits: Limits::default(),
    }
}

/// Remembers what it was asked, in order, and answers as it was told to.
#[derive(Default)]
pub struct Fake {
    pub asked: Mutex<Vec<String>>,
    /// Name → what `read` answers; without it, null fields.
    pub statuses: BTreeMap<&'static str, Value>,
    /// Name → what `act` answers.
    pub answers: BTreeMap<&'static str, Value>,
    pub secrets: BTreeMap<&'static str, &'static str>,
    /// Names that cannot be read.
    pub failing: BTreeMap<&'static str, Failure>,
    /// Names whose reading never comes to an end.
    pub stuck: BTreeSet<&'static str>,
    pub aborts: bool,
    pub finish: Option<Failure>,
}

impl Fake {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl Host for Fake {
    async fn declare(&self, call: u64, r: DesiredResource) -> Result<Value, HostError> {
        self.note(format!("{call} declare {} {} line {}", r.kind, r.name, r.line));
        if self.aborts {
            return Err(HostError::Aborted);
        }
        let id = script("").context.deployment.resource(r.name);
        let address = resource_address(NODE.parse().unwrap(), &id);
        r.kind.predict(&r.spec, address).map_err(HostError::Failed)
    }

    async fn read(&self, name: &Name) -> Result<Value, HostError> {
        self.note(format!("read {name}"));
        if self.stuck.contains(name.as_str()) {
            std::future::pending::<()>().await;
        }
        if let Some(failure) = self.failing.get(name.as_str()) {
            return Err(HostError::Failed(failure.clone()));
        }
        Ok(self.statuses.get(name.as_str()).cloned().unwrap_or_else(|| json!({})))
    }

    async fn act(&self, call: u64, name: &Name, action: Action) -> Result<Value, HostError> {
        self.note(format!("{call} act {name} {}", json!(action)));
        let answer = self.answers.get(name.as_str()).cloned();
        Ok(answer.unwrap_or_else(|| json!({ "exit_code": 0, "output": "" })))
    }

    async fn secret(&self, name: &str) -> Result<String, HostError> {
        let secret = self.secrets.get(name).map(|s| (*s).to_owned());
        secret.ok_or_else(|| {
            let message = format!("there is no secret '{name}'");
            HostError::Failed(Failure::new(rhizome_model::Code::NotFound, message))
        })
    }

    async fn log(&self, _: u64, message: String) -> Result<(), HostError> {
        self.note(format!("log {message}"));
        Ok(())
    }

    async fn output(&self, key: String, value: Value) -> Result<(), HostError> {
        self.note(format!("output {key} {value}"));
        Ok(())
    }

    async fn finish(&self) -> Result<(), HostError> {
        self.note("finish".into());
        self.finish.clone().map_or(Ok(()), |failure| Err(HostError::Failed(failure)))
    }
}

pub async fn run(script: &Script, host: &Fake) -> Result<Evaluation, Stop> {
    let sandboxes = sandboxes();
    let ended = sandboxes.evaluate(script, host, CancellationToken::new()).await;
    sandboxes.close().await;
    ended
}

/// The outputs of a script that succeeds.
pub async fn outputs(source: &str) -> Value {
    match run(&script(source), &Fake::default()).await {
        Ok(evaluation) => json!(evaluation.outputs),
        Err(stop) => panic!("{source}: {stop:?}"),
    }
}

/// The failure of a script that fails.
pub async fn failure(script: &Script) -> Failure {
    failed(run(script, &Fake::default()).await)
}

pub fn failed(ended: Result<Evaluation, Stop>) -> Failure {
    match ended {
        Err(Stop::Failed(failure)) => failure,
        other => panic!("it should have failed: {other:?}"),
    }
}

/// Code and rendered diagnostic, for snapshots.
pub fn shown(failure: &Failure) -> String {
    let detail = failure.detail.as_deref().unwrap_or("(no detail)");
    format!("[{}] {}\n{detail}", failure.code, failure.message)
}
