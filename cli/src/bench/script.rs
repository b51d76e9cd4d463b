//! `rhizome bench script`: what it costs that a script survives.
//!
//! Deployments per second are measured on a whole system. The rest is a runner of scripts by itself,
//! on redis-servers of its own, whose volumes nobody makes: their jobs are answered at once.
//!
//! ```text
//!   journaled calls: a script of N actions, one after the other: intent, job, result    per durability,
//!                    alone and 16 side by side
//!   resources:       a script of N declarations: evaluated and made; then again, unchanged
//! ```

use std::process::ExitCode;
use std::time::Instant;

use futures_util::future::try_join_all;
use rhizome_identity::SigningKey;
use rhizome_model::{
    AccountId, Bytes, Capacity, Code, Cpu, DeploymentDocument, DeploymentId, Failure, FarmId, Job,
    JobId, Limits, NodeFacts, NodeId, Outcome, Placement, SCRIPT_QUEUE, Task, Version, Work,
    WorkloadKind, payload_type, queue_name,
};
use rhizome_queue::{Accept, Acceptance, Allow, Durability, Queue, QueueConfig, RunnerOptions};
use rhizome_runner::RunnerConfig;
use rhizome_service::Shutdown;
use serde_json::{Map, Value, json};

use super::load::{Server, failed};
use super::submit;
use crate::cli::Globals;
use crate::error::{Error, internal};
use crate::output;
use crate::services::program;

/// Scripts side by side.
const SIDE_BY_SIDE: usize = 16;
/// Jobs that volumes are answered in at a time.
const SLOTS: usize = 256;
const DURABILITIES: [(&str, Durability); 3] = [
    ("always", Durability::Always),
    ("everysec", Durability::Everysec),
    ("none", Durability::None),
];

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rhizome bench script --json")]
pub struct Args {
    /// Journaled calls of each script.
    #[arg(long, default_value_t = 200, value_name = "N")]
    calls: usize,
    /// Numbers of resources that one script declares.
    #[arg(long, default_values_t = [100, 1000, 10_000], value_delimiter = ',', value_name = "N")]
    resources: Vec<usize>,
    /// Deployments of a script that does nothing, on a whole system; 0 for none.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    deployments: u64,
}

pub async fn run(args: Args, globals: &Globals) -> Result<ExitCode, Error> {
    let mut figures = Map::new();
    let mut calls = Map::new();
    for (word, durability) in DURABILITIES {
        output::note(format!("journaled calls, durability {word}"));
        let alone = journaled_call_us(durability, 1, args.calls).await?;
        let together = journaled_call_us(durability, SIDE_BY_SIDE, args.calls).await?;
        if durability == Durability::Always {
            figures.insert("journal_call_us".into(), json!(alone.round()));
        }
        let both = json!({ "alone_us": alone.round(), "side_by_side_us": together.round() });
        calls.insert(word.into(), both);
    }
    figures.insert("journal_calls".into(), calls.into());
    for count in &args.resources {
        output::note(format!("{count} resources"));
        let (first, again) = resources_ms(*count).await?;
        figures.insert(format!("resources_{count}_ms"), json!(first.round()));
        figures.insert(format!("resources_{count}_again_ms"), json!(again.round()));
    }
    if args.deployments > 0 {
        output::note("deployments of a script that does nothing");
        let per_s = submit::throughput(globals, SIDE_BY_SIDE as u64, args.deployments).await?;
        figures.insert("deployments_per_s".into(), json!((per_s * 10.0).round() / 10.0));
    }
    if globals.json {
        output::json(&Value::Object(figures));
    } else {
        for (key, value) in figures {
            output::line(format_args!("{key:>28}  {value}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// µs per journaled call: written, done, answered, told.
async fn journaled_call_us(
    durability: Durability,
    scripts: usize,
    calls: usize,
) -> Result<f64, Error> {
    let bench = Bench::start(durability, scripts, 1).await?;
    let source = format!(
        "let v = volume(\"v\", #{{ size: \"1MiB\" }}); for i in 0..{calls} {{ v.wait(); }}"
    );
    let begun = Instant::now();
    let all = (0..scripts).map(|n| bench.deploy(format!("bench-{n}"), 1, &source));
    try_join_all(all).await?;
    let us = begun.elapsed().as_secs_f64() * 1e6 / calls as f64;
    bench.stop().await;
    // Side by side each took as long as all together, so this is what one of so many costs.
    Ok(us / scripts as f64)
}

/// ms until so many resources are made, and until they are found unchanged.
async fn resources_ms(count: usize) -> Result<(f64, f64), Error> {
    let bench = Bench::start(Durability::Always, 1, count).await?;
    let source = format!("for i in 0..{count} {{ volume(`v-${{i}}`, #{{ size: \"1MiB\" }}); }}");
    let mut times = Vec::new();
    for version in 1..=2 {
        let begun = Instant::now();
        bench.deploy("bench".into(), version, &source).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    bench.stop().await;
    Ok((times[0], times[1]))
}

/// A runner of scripts, and one that answers for volumes.
struct Bench {
    server: Server,
    key: SigningKey,
    runners: Shutdown,
    working: Vec<tokio::task::JoinHandle<()>>,
}

impl Bench {
    async fn start(
        durability: Durability,
        scripts: usize,
        resources: usize,
    ) -> Result<Self, Error> {
        let server = Server::start(durability).await?;
        let key = SigningKey::generate().map_err(|e| internal("a key", &e))?;
        let runners = Shutdown::new();
        let config = RunnerConfig {
            name: "scripts".into(),
            queue: QueueConfig { socket: server.socket(), durability },
            queues: vec![SCRIPT_QUEUE.into()],
            slots: scripts,
            facts: facts(),
            sandbox: (program()?, vec!["sandbox".into()]),
            limits: Limits {
                operations: u64::MAX,
                cpu_ms: 600_000,
                resources: resources.max(Limits::default().resources),
                ..Limits::default()
            },
            spool: None,
            identity: None,
            sal: None,
        };
        let stop = runners.clone();
        let scripts = tokio::spawn(async move {
            if let Err(error) = rhizome_runner::run(config, stop).await {
                output::note(format!("the runner of scripts ended: {error}"));
            }
        });
        let volumes = tokio::spawn(answer_volumes(server.queue.clone(), runners.clone()));
        Ok(Self { server, key, runners, working: vec![scripts, volumes] })
    }

    async fn deploy(&self, name: String, version: u64, source: &str) -> Result<(), Error> {
        let queue = &self.server.queue;
        let name = name.parse().map_err(|e| internal("a name", &e))?;
        let id = DeploymentId { account: AccountId(1), name };
        let job = JobId::script(&id, Version(version));
        let current = queue.task(&id).await.map_err(failed)?;
        let mut task = Task::new(id.clone(), Version(version), job);
        task.envelope = self.envelope(&id, version, source)?;
        task.desired = current.as_ref().map(|t| t.desired.clone()).unwrap_or_default();
        let job = Job {
            deployment: Some(id),
            version: Some(task.version),
            ..Job::new(job, queue_name(&Work::Script), AccountId(1), Work::Script)
        };
        let nonce = uuid::Uuid::new_v4().to_string();
        let request = Accept {
            task: &task,
            base: current.as_ref().map(|t| (t.version, t.phase)),
            nonce: &nonce,
            nonce_expires: rhizome_service::clock::now_secs() + 3600,
            digest: &nonce,
            total: facts().capacity,
            allow: Allow::AsBefore,
            jobs: std::slice::from_ref(&job),
            events: &[],
        };
        match queue.accept(request).await.map_err(failed)? {
            Acceptance::Accepted { .. } => {}
            other => {
                return Err(unexpected(format!("the bench was not accepted: {other:?}")));
            }
        }
        match queue.wait(job.id).await.map_err(failed)? {
            Outcome::Succeeded(_) => Ok(()),
            other => Err(unexpected(format!("a script of the bench ended as {other:?}"))),
        }
    }

    fn envelope(&self, id: &DeploymentId, version: u64, source: &str) -> Result<String, Error> {
        let document = DeploymentDocument {
            account: id.account,
            name: id.name.clone(),
            version: Version(version),
            network: "dev".into(),
            script: source.into(),
            params: Default::default(),
            placement: Placement { nodes: vec![facts().id] },
            policy: Default::default(),
            not_before: None,
            expires: rhizome_service::clock::now_secs() + 3600,
            nonce: uuid::Uuid::new_v4().simple().to_string(),
            secrets: Default::default(),
            cosigners: Vec::new(),
            required_weight: 1,
        };
        let payload = serde_json::to_vec(&document).map_err(|e| internal("a document", &e))?;
        Ok(self.key.sign_envelope(payload_type::DEPLOYMENT, &payload).to_json())
    }

    async fn stop(self) {
        self.runners.token.cancel();
        for working in self.working {
            // It ends by itself; a panic in it was shown.
            let _ = working.await;
        }
    }
}

/// Says of every volume that it is there.
async fn answer_volumes(queue: Queue, stop: Shutdown) {
    let kind = WorkloadKind::Volume;
    let options = RunnerOptions {
        name: "volumes".into(),
        queues: vec![kind.to_string(), format!("{kind}-actions")],
        slots: SLOTS,
        ..Default::default()
    };
    let mut runner = match queue.runner(options).await {
        Ok(runner) => runner,
        Err(error) => return output::note(format!("nobody answers for volumes: {error}")),
    };
    loop {
        let lease = tokio::select! {
            lease = runner.next() => lease,
            () = stop.requested() => None,
        };
        let Some(lease) = lease else { break };
        tokio::spawn(async move {
            let status = json!({ "size": 1 << 20, "path": "/" });
            let noted = match (&lease.job.work, &lease.job.deployment, &lease.job.resource) {
                (Work::Ensure { .. }, Some(deployment), Some(resource)) => {
                    lease.set_status(deployment, resource, Some(&status), &[]).await
                }
                _ => Ok(()),
            };
            let ended = match noted {
                Ok(()) => lease.finish(&Outcome::Succeeded(status)).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                output::note(format!("a volume was not answered for: {error}"));
            }
        });
    }
    runner.close().await;
}

fn unexpected(message: String) -> Error {
    Failure::new(Code::Internal, message).into()
}

fn facts() -> NodeFacts {
    NodeFacts {
        id: NodeId(1),
        farm: FarmId(1),
        address: std::net::Ipv6Addr::new(0x400, 0, 0, 0, 0, 0, 0, 1),
        capacity: Capacity {
            cpu: Cpu::cores(64),
            memory: Bytes::gib(256),
            disk: Bytes::gib(1 << 20),
        },
    }
}
