//! BullMQ's official Rust port: `add_bulk`, and one worker with many jobs at a time.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use bullmq::options::RedisConnectionOptions;
use bullmq::{BulkJob, Job, Queue, QueueOptions, Worker, WorkerOptions};
use serde_json::json;
use tokio::sync::OnceCell;

use super::{Peer, setting, url};
use crate::payload::Payload;
use crate::tally::Tally;

const QUEUE: &str = "bench";
const BULK: usize = 1000;
const CONCURRENCY: usize = 50;

pub struct Bullmq {
    queue: Queue,
    connection: RedisConnectionOptions,
    worker: OnceCell<Worker>,
}

impl Bullmq {
    pub async fn open(socket: &Path) -> Result<Self> {
        let connection = RedisConnectionOptions::new().url(url(socket));
        let options = QueueOptions::new().connection(connection.clone());
        let queue = Queue::with_options(QUEUE, options).await?;
        Ok(Self { queue, connection, worker: OnceCell::new() })
    }
}

#[async_trait]
impl Peer for Bullmq {
    async fn submit(&self, payloads: Vec<Payload>) -> Result<()> {
        for some in payloads.chunks(setting("BENCH_BULK", BULK)) {
            let jobs = some.iter().map(|p| BulkJob::new("noop", p)).collect();
            self.queue.add_bulk(jobs).await?;
        }
        Ok(())
    }

    async fn submit_one(&self, payload: Payload) -> Result<()> {
        self.queue.add("noop", payload).await?;
        Ok(())
    }

    async fn work(&self, tally: Arc<Tally>) -> Result<()> {
        let handle = move |job: Job, _| {
            let tally = tally.clone();
            async move {
                tally.begin(job.data()["n"].as_u64().unwrap_or_default()).await;
                tally.end();
                Ok(json!({ "ok": true }))
            }
        };
        let options = WorkerOptions::new()
            .connection(self.connection.clone())
            .concurrency(setting("BENCH_CONCURRENCY", CONCURRENCY));
        self.worker.get_or_try_init(|| Worker::with_options(QUEUE, handle, options)).await?;
        Ok(())
    }
}
