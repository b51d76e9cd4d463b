//! Rhizome's own queue, as its supervisor and its runners use it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use async_trait::async_trait;
use rhizome_model::{AccountId, DeploymentId, Job, JobId, Name, Outcome, Work, WorkloadKind};
use rhizome_queue::{Durability, Lease, Queue, QueueConfig, RunnerOptions, Submission};
use serde_json::json;

use super::{Peer, setting};
use crate::payload::Payload;
use crate::tally::Tally;

const QUEUE: &str = "volume";
/// Leases at a time.
const SLOTS: usize = 2048;

pub struct Rhizome {
    queue: Queue,
    deployment: DeploymentId,
    name: Name,
}

impl Rhizome {
    pub async fn open(socket: &Path, durability: Durability) -> Result<Self> {
        let queue = Queue::connect(&QueueConfig { socket: socket.to_owned(), durability }).await?;
        let name: Name = "bench".parse()?;
        let deployment = DeploymentId { account: AccountId(1), name: name.clone() };
        Ok(Self { queue, deployment, name })
    }

    /// The payload is the work's; what else a job consists of comes on top, as with the peers.
    fn job(&self, payload: &Payload) -> Result<Job> {
        let work = Work::Ensure {
            kind: WorkloadKind::Volume,
            id: self.deployment.resource(self.name.clone()),
            spec: serde_json::to_value(payload)?,
        };
        let id = JobId(uuid::Uuid::new_v4().into_bytes());
        Ok(Job::new(id, QUEUE, self.deployment.account, work))
    }
}

#[async_trait]
impl Peer for Rhizome {
    async fn submit(&self, payloads: Vec<Payload>) -> Result<()> {
        let jobs: Vec<Job> = payloads.iter().map(|p| self.job(p)).collect::<Result<_>>()?;
        let submissions = self.queue.submit(&jobs).await?;
        ensure!(submissions.iter().all(|s| *s == Submission::Queued), "a job was refused");
        Ok(())
    }

    async fn submit_one(&self, payload: Payload) -> Result<()> {
        self.queue.submit(&[self.job(&payload)?]).await?;
        Ok(())
    }

    async fn work(&self, tally: Arc<Tally>) -> Result<()> {
        let options = RunnerOptions {
            name: runner_name(std::process::id()),
            queues: vec![QUEUE.into()],
            slots: setting("BENCH_SLOTS", SLOTS),
            ..Default::default()
        };
        let mut runner = self.queue.runner(options).await?;
        tokio::spawn(async move {
            while let Some(lease) = runner.next().await {
                tokio::spawn(handle(lease, tally.clone()));
            }
        });
        Ok(())
    }
}

/// Unlike the peers' it counts only what has its outcome in Redis.
async fn handle(lease: Lease, tally: Arc<Tally>) {
    let n = match &lease.job.work {
        Work::Ensure { spec, .. } => spec["n"].as_u64().unwrap_or_default(),
        _ => 0,
    };
    tally.begin(n).await;
    if let Err(error) = lease.finish(&Outcome::Succeeded(json!({ "ok": true }))).await {
        crate::serve::give_up(&error);
    }
    tally.end();
}

/// The name of the runner of a process.
pub fn runner_name(process: u32) -> String {
    format!("bench-{process}")
}
