//! A node without a kernel under it: a redis-server, a runner of scripts that can be made to die, and
//! volumes that are only remembered, with everything that was done to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use rhizome_chaos::server::Server;
use rhizome_identity::SigningKey;
use rhizome_model::{
    AccountId, Bytes, Capacity, Code, Cpu, DeploymentDocument, DeploymentId, Failure, FarmId, Job,
    JobId, Journal, Limits, NodeFacts, NodeId, Outcome, Phase, Placement, Policy, SCRIPT_QUEUE,
    Task, Version, What, Work, WorkloadKind, payload_type, queue_name,
};
use rhizome_queue::{Accept, Acceptance, Allow, Durability, Lease, Queue, RunnerOptions};
use rhizome_runner::RunnerConfig;
use rhizome_service::Shutdown;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What there is, and what was done, by resource.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Made {
    /// Size in MiB.
    pub volumes: BTreeMap<String, u64>,
    /// Actions, by resource, each once however often its job was tried.
    pub acts: BTreeMap<String, Vec<JobId>>,
}

/// How a deployment ended, as far as two runs of one script must agree.
#[derive(Debug, PartialEq)]
pub struct Ended {
    pub phase: Phase,
    pub code: Option<Code>,
    pub outputs: BTreeMap<String, Value>,
    pub volumes: BTreeMap<String, u64>,
    /// How often each was acted on.
    pub acts: BTreeMap<String, usize>,
    pub logs: Vec<String>,
}

pub struct World {
    pub queue: Queue,
    made: Arc<Mutex<Made>>,
    server: Server,
    key: SigningKey,
    _running: DropGuard,
}

/// A runner of scripts in a runtime of its own: it dies with it, in the middle of anything.
pub struct ScriptRunner {
    name: String,
    runtime: Option<tokio::runtime::Runtime>,
}

impl World {
    pub async fn new() -> Self {
        let server = Server::start(Durability::None).unwrap();
        let queue = Queue::connect(&server.config()).await.unwrap();
        let made: Arc<Mutex<Made>> = Arc::default();
        let stop = CancellationToken::new();
        let maintained = queue.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned({
            let stop = stop.clone();
            async move { maintained.maintain(stop).await }
        }));
        let kind = WorkloadKind::Volume;
        let options = RunnerOptions {
            name: "volumes".into(),
            queues: vec![kind.to_string(), format!("{kind}-actions")],
            slots: 8,
            ..Default::default()
        };
        let mut volumes = queue.runner(options).await.unwrap();
        let world = made.clone();
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Some(lease) = volumes.next().await {
                let world = world.clone();
                tokio::spawn(async move { answer(&lease, &world).await });
            }
        }));
        let key = SigningKey::generate().unwrap();
        Self { queue, made, server, key, _running: stop.drop_guard() }
    }

    pub fn script_runner(&self) -> ScriptRunner {
        let name = uuid::Uuid::new_v4().to_string();
        let config = RunnerConfig {
            name: name.clone(),
            queue: self.server.config(),
            queues: vec![SCRIPT_QUEUE.into()],
            slots: 4,
            facts: facts(),
            sandbox: (rhizome_tests::binary(), vec!["sandbox".into()]),
            limits: Limits::default(),
            spool: None,
            identity: None,
            sal: None,
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        runtime.spawn(async move { rhizome_runner::run(config, Shutdown::new()).await });
        ScriptRunner { name, runtime: Some(runtime) }
    }

    /// It dies; what it held goes back, as a supervisor does that sees it.
    pub async fn kill(&self, mut runner: ScriptRunner) {
        if let Some(runtime) = runner.runtime.take() {
            runtime.shutdown_background();
        }
        self.queue.release_runner(&runner.name).await.unwrap();
    }

    /// Has a version accepted; its job.
    pub async fn submit(&self, name: &str, version: u64, policy: Policy, source: &str) -> JobId {
        let id = DeploymentId { account: AccountId(1), name: name.parse().unwrap() };
        let job = JobId::script(&id, Version(version));
        let current = self.queue.task(&id).await.unwrap();
        let mut task = Task::new(id.clone(), Version(version), job);
        let document = DeploymentDocument {
            account: id.account,
            name: id.name.clone(),
            version: Version(version),
            network: "dev".into(),
            script: source.into(),
            params: Default::default(),
            placement: Placement { nodes: vec![facts().id] },
            policy,
            not_before: None,
            expires: rhizome_service::clock::now_secs() + 3600,
            nonce: uuid::Uuid::new_v4().simple().to_string(),
            secrets: Default::default(),
            cosigners: Vec::new(),
            required_weight: 1,
        };
        let payload = serde_json::to_vec(&document).unwrap();
        task.envelope = self.key.sign_envelope(payload_type::DEPLOYMENT, &payload).to_json();
        task.desired = current.as_ref().map(|t| t.desired.clone()).unwrap_or_default();
        let job = Job {
            deployment: Some(id),
            version: Some(task.version),
            max_attempts: 1000,
            ..Job::new(job, queue_name(&Work::Script), AccountId(1), Work::Script)
        };
        let request = Accept {
            task: &task,
            base: current.as_ref().map(|t| (t.version, t.phase)),
            nonce: &document.nonce,
            nonce_expires: document.expires,
            digest: &document.nonce,
            total: facts().capacity,
            allow: Allow::AsBefore,
            jobs: std::slice::from_ref(&job),
            events: &[],
        };
        let accepted = self.queue.accept(request).await.unwrap();
        assert!(matches!(accepted, Acceptance::Accepted { .. }), "{accepted:?}");
        job.id
    }

    /// How often the last attempt of a job wrote its journal.
    pub fn writes(&self, job: JobId) -> u64 {
        self.redis(&["HGET", &format!("{{n}}:more:{job}"), "un"]).parse().unwrap()
    }

    /// Until the script of a task has begun its effect of this number.
    pub async fn until_journaled(&self, name: &str, call: u64) {
        self.until_journal(name, |journal| journal.steps.contains_key(&call)).await;
    }

    /// Until its journal says how that effect ended.
    pub async fn until_answered(&self, name: &str, call: u64) {
        self.until_journal(name, |journal| journal.results.contains_key(&call)).await;
    }

    async fn until_journal(&self, name: &str, is_so: impl Fn(&Journal) -> bool) {
        let id = DeploymentId { account: AccountId(1), name: name.parse().unwrap() };
        for _ in 0..2000 {
            if is_so(&self.queue.journal(&id).await.unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{name} never came that far");
    }

    /// Nothing is known any more of the job that did this action: an hour is over.
    pub fn forget_act(&self, name: &str, call: u64) {
        let id = DeploymentId { account: AccountId(1), name: name.parse().unwrap() };
        let job = JobId::derived(&id, Version(1), &format!("act {call}"));
        assert_eq!(self.redis(&["DEL", &format!("{{n}}:job:{job}")]), "1");
    }

    /// Writes into the journal of a task what its script did not do.
    pub fn falsify(&self, name: &str, call: u64, from: &str, to: &str) {
        let (key, call) = (format!("{{n}}:journal:1/{name}"), call.to_string());
        let step = self.redis(&["HGET", &key, &call]);
        assert!(step.contains(from), "{step}");
        self.redis(&["HSET", &key, &call, &step.replace(from, to)]);
    }

    fn redis(&self, words: &[&str]) -> String {
        let mut ask = std::process::Command::new("redis-cli");
        ask.arg("-s").arg(self.server.socket()).args(words);
        String::from_utf8(ask.output().unwrap().stdout).unwrap().trim().to_owned()
    }

    /// How it ended, once its job has.
    pub async fn ended(&self, name: &str, job: JobId) -> Ended {
        let waited = tokio::time::timeout(Duration::from_secs(60), self.queue.wait(job)).await;
        waited.unwrap_or_else(|_| panic!("{name} is not at its end")).unwrap();
        let id = DeploymentId { account: AccountId(1), name: name.parse().unwrap() };
        let task = self.queue.task(&id).await.unwrap().unwrap();
        assert!(task.declared.is_empty(), "it has ended: {task:?}");
        let made = self.made.lock().unwrap().clone();
        let prefix = format!("{name}/");
        let own = |key: &String| key.strip_prefix(&prefix).map(str::to_owned);
        Ended {
            phase: task.phase,
            code: task.failure.map(|f| f.code),
            outputs: task.outputs,
            volumes: made.volumes.iter().filter_map(|(k, v)| Some((own(k)?, *v))).collect(),
            acts: made.acts.iter().filter_map(|(k, v)| Some((own(k)?, v.len()))).collect(),
            logs: self.logs(&id).await,
        }
    }

    async fn logs(&self, id: &DeploymentId) -> Vec<String> {
        let last = rhizome_model::Event {
            at: 0,
            deployment: id.clone(),
            version: Version(u32::MAX.into()),
            node: None,
            what: What::Log { message: uuid::Uuid::new_v4().to_string() },
        };
        self.queue.publish(std::slice::from_ref(&last)).await.unwrap();
        let mut events = Box::pin(self.queue.follow(None));
        let mut logs = Vec::new();
        while let Some(event) = events.next().await {
            let (_, event) = event.unwrap();
            if event == last {
                break;
            }
            let ours = event.deployment == *id && event.version != last.version;
            if let (What::Log { message }, true) = (event.what, ours) {
                logs.push(message);
            }
        }
        logs
    }
}

/// What a node would do. A volume whose name begins with `bad` cannot be made.
async fn answer(lease: &Lease, world: &Mutex<Made>) {
    let slow = matches!(&lease.job.work, Work::Act { id, .. } if id.name.as_str() == "slow");
    let time = if slow { Duration::from_secs(1) } else { Duration::from_micros(500) };
    tokio::time::sleep(time).await;
    let outcome = {
        let mut made = world.lock().unwrap();
        match &lease.job.work {
            Work::Ensure { id, .. } if id.name.as_str().starts_with("bad") => {
                Outcome::Failed(Failure::new(Code::InvalidSpec, "it cannot be made"))
            }
            Work::Ensure { id, spec, .. } => {
                let size = spec["size"].as_u64().unwrap() >> 20;
                made.volumes.insert(key(id), size);
                Outcome::Succeeded(json!({ "size": size << 20, "used": 0 }))
            }
            Work::Delete { id, .. } => {
                made.volumes.remove(&key(id));
                Outcome::Succeeded(Value::Null)
            }
            Work::Act { id, .. } => {
                let acts = made.acts.entry(key(id)).or_default();
                assert!(!acts.contains(&lease.job.id), "an action was done twice");
                acts.push(lease.job.id);
                let output = if id.name.as_str() == "talkative" {
                    "x".repeat(60_000)
                } else {
                    String::new()
                };
                Outcome::Succeeded(json!({ "exit_code": acts.len(), "output": output }))
            }
            other => panic!("{other:?}"),
        }
    };
    lease.finish(&outcome).await.unwrap();
}

fn key(id: &rhizome_model::ResourceId) -> String {
    format!("{}/{}", id.deployment_id().name, id.name)
}

fn facts() -> NodeFacts {
    NodeFacts {
        id: NodeId(1),
        farm: FarmId(1),
        address: "400::1".parse().unwrap(),
        capacity: Capacity { cpu: Cpu::cores(4), memory: Bytes::gib(8), disk: Bytes::gib(1000) },
    }
}
