//! apalis-redis: `push_stream`, larger batches than by default, and handlers in tasks of their own.
//!
//! By default an idle worker looks for jobs when its heartbeat is due, every 30 s. Polling at an
//! interval, as in its own tests, is what makes it usable.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use apalis::prelude::{
    BackendExt, BoxDynError, Data, ParallelizeExt, TaskSink, WorkerBuilder, WorkerBuilderExt,
};
use apalis_redis::{Config, RedisStorage};
use async_trait::async_trait;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::{Peer, setting, url};
use crate::payload::Payload;
use crate::tally::Tally;

/// With some 8,000 that are due at once every worker dies: "too many results to unpack".
pub const MOST: usize = 6000;
const BULK: usize = 1000;
const BATCH: usize = 500;
const CONCURRENCY: usize = 1000;
const POLL_MS: usize = 10;

pub struct Apalis {
    storage: RedisStorage<Payload>,
    polls: bool,
}

impl Apalis {
    pub async fn open(socket: &Path, polls: bool) -> Result<Self> {
        let connection = apalis_redis::connect(url(socket)).await?;
        let config = Config::default().queue("bench").batch_size(setting("BENCH_BATCH", BATCH));
        Ok(Self { storage: RedisStorage::new(connection).with_config(config), polls })
    }
}

impl Apalis {
    /// As in its README the worker runs where `main` would, and its handlers where they are spawned.
    fn start(&self, tally: Arc<Tally>) {
        let main = Handle::current();
        let name = format!("bench-{}", std::process::id());
        let concurrency = setting("BENCH_CONCURRENCY", CONCURRENCY);
        if self.polls {
            let poll = Duration::from_millis(setting("BENCH_POLL_MS", POLL_MS) as u64);
            let worker = WorkerBuilder::new(name)
                .backend(self.storage.clone().poll_with_interval(poll))
                .concurrency(concurrency)
                .parallelize(tokio::spawn)
                .data(tally)
                .build(handle);
            std::thread::spawn(move || died(main.block_on(worker.run())));
        } else {
            let worker = WorkerBuilder::new(name)
                .backend(self.storage.clone())
                .concurrency(concurrency)
                .parallelize(tokio::spawn)
                .data(tally)
                .build(handle);
            std::thread::spawn(move || died(main.block_on(worker.run())));
        }
    }
}

#[async_trait]
impl Peer for Apalis {
    async fn submit(&self, payloads: Vec<Payload>) -> Result<()> {
        let mut storage = self.storage.clone();
        let mut payloads = payloads.into_iter().peekable();
        while payloads.peek().is_some() {
            let some: Vec<Payload> = payloads.by_ref().take(BULK).collect();
            storage.push_stream(&mut stream::iter(some)).await.map_err(|e| anyhow!("{e:?}"))?;
        }
        Ok(())
    }

    async fn submit_one(&self, payload: Payload) -> Result<()> {
        self.storage.clone().push(payload).await.map_err(|e| anyhow!("{e:?}"))
    }

    async fn work(&self, tally: Arc<Tally>) -> Result<()> {
        self.start(tally);
        Ok(())
    }
}

/// A worker that ends by itself met an error, and does not come back.
fn died<E: std::fmt::Display>(ended: Result<(), E>) {
    match ended {
        Ok(()) => crate::serve::give_up(&"the worker has ended"),
        Err(error) => crate::serve::give_up(&error),
    }
}

async fn handle(payload: Payload, tally: Data<Arc<Tally>>) -> Result<Value, BoxDynError> {
    tally.begin(payload.n).await;
    tally.end();
    Ok(json!({ "ok": true }))
}
