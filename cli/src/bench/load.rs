//! A load on a redis-server of one's own: jobs of a known size, and who drains them.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use rhizome_model::{AccountId, Job, JobId, Name, Outcome, Work, WorkloadKind, queue_name};
use rhizome_queue::{Durability, Lease, Queue, QueueConfig, QueueError, Runner, RunnerOptions};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::error::{Error, internal, misuse};

/// A job as JSON.
pub(super) const BYTES: usize = 300;

/// Every job in a task of its own, as runners do it.
pub(super) async fn drain(runner: &mut Runner, jobs: usize) -> Result<(), Error> {
    let mut working = JoinSet::new();
    for _ in 0..jobs {
        end(&mut working, next(runner).await?);
        while let Some(ended) = working.try_join_next() {
            finished(ended)?;
        }
    }
    all_finished(working).await
}

/// Ends jobs that have been claimed.
pub(super) async fn finish(leases: Vec<Lease>) -> Result<(), Error> {
    let mut working = JoinSet::new();
    for lease in leases {
        end(&mut working, lease);
    }
    all_finished(working).await
}

type Ending = JoinSet<Result<(), QueueError>>;

fn end(working: &mut Ending, lease: Lease) {
    working.spawn(async move { lease.finish(&Outcome::Succeeded(json!({ "ok": true }))).await });
}

async fn all_finished(mut working: Ending) -> Result<(), Error> {
    while let Some(ended) = working.join_next().await {
        finished(ended)?;
    }
    Ok(())
}

fn finished(ended: Result<Result<(), QueueError>, tokio::task::JoinError>) -> Result<(), Error> {
    ended.map_err(|e| internal("a task of the bench", &e))?.map_err(failed)
}

pub(super) async fn open(queue: &Queue, name: &str, slots: usize) -> Result<Runner, Error> {
    let queues = vec![WorkloadKind::Volume.to_string()];
    let options = RunnerOptions { name: name.into(), queues, slots, ..Default::default() };
    queue.runner(options).await.map_err(failed)
}

pub(super) async fn next(runner: &mut Runner) -> Result<Lease, Error> {
    let lease = runner.next().await;
    lease.ok_or_else(|| misuse("the runner of the bench was drained").into())
}

pub(super) fn failed(error: QueueError) -> Error {
    rhizome_model::Failure::from(error).into()
}

/// Jobs that do nothing, of [`BYTES`] each.
pub(super) fn make_jobs(count: usize) -> Result<Vec<Job>, Error> {
    let name: Name = "bench".parse().map_err(|e| internal("a name", &e))?;
    let account = AccountId(1);
    let deployment = rhizome_model::DeploymentId { account, name: name.clone() };
    let work = |padding: usize| Work::Ensure {
        kind: WorkloadKind::Volume,
        id: deployment.resource(name.clone()),
        spec: json!({ "padding": "x".repeat(padding) }),
    };
    let mut job = Job::new(JobId([0; 16]), queue_name(&work(0)), account, work(0));
    let bare = serde_json::to_string(&job).map_err(|e| internal("a job", &e))?.len();
    job.work = work(BYTES.saturating_sub(bare));
    let with_id = |_| Job { id: JobId(uuid::Uuid::new_v4().into_bytes()), ..job.clone() };
    Ok((0..count).map(with_id).collect())
}

pub(super) fn rate(jobs: usize, begun: Instant) -> f64 {
    jobs as f64 / begun.elapsed().as_secs_f64()
}

/// A redis-server in a folder of its own; both are gone when it is dropped.
pub(super) struct Server {
    pub(super) queue: Queue,
    process: Child,
    durability: Durability,
    folder: Folder,
}

struct Folder(PathBuf);

fn start(folder: &Folder, durability: Durability) -> Result<Child, Error> {
    let keeps = if durability == Durability::None { "no" } else { "yes" };
    let started = Command::new("redis-server")
        .args(["--port", "0", "--unixsocket", "redis.sock", "--save", ""])
        .args(["--appendonly", keeps])
        .current_dir(&folder.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| internal("cannot start redis-server; is it installed?", &e))?;
    Ok(started)
}

async fn connect(folder: &Folder, durability: Durability) -> Result<Queue, Error> {
    let config = QueueConfig { socket: folder.0.join("redis.sock"), durability };
    Queue::connect(&config).await.map_err(failed)
}

impl Server {
    pub(super) async fn start(durability: Durability) -> Result<Self, Error> {
        let name = format!("rhizome-bench-{}", uuid::Uuid::new_v4().simple());
        let folder = Folder(std::env::temp_dir().join(name));
        std::fs::create_dir(&folder.0).map_err(|e| internal("cannot make a folder", &e))?;
        let process = start(&folder, durability)?;
        let queue = connect(&folder, durability).await?;
        Ok(Self { queue, process, durability, folder })
    }

    /// Kills it and starts it again on the same data; returns when it answers.
    pub(super) async fn restart(&mut self) -> Result<(), Error> {
        self.process.kill().await.map_err(|e| internal("cannot kill redis-server", &e))?;
        self.process = start(&self.folder, self.durability)?;
        self.queue = connect(&self.folder, self.durability).await?;
        Ok(())
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.0.join("redis.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_the_size_that_is_promised() {
        for job in make_jobs(3).unwrap() {
            assert_eq!(serde_json::to_string(&job).unwrap().len(), BYTES);
        }
    }
}
