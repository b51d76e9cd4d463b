//! rusty-sidekiq: it has no bulk call, so many tasks submit one by one; a pool of connections for
//! submitting and one for working, as its README recommends.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use async_trait::async_trait;
use futures_util::future::try_join_all;
use sidekiq::{Processor, ProcessorConfig, RedisConnectionManager, RedisPool, Worker, WorkerOpts};

use super::{Peer, setting, url};
use crate::payload::Payload;
use crate::tally::Tally;

const QUEUE: &str = "bench";
/// Tasks that submit, with a connection each.
const SUBMITTERS: usize = 64;
/// Jobs at a time.
const WORKERS: usize = 64;

pub struct Sidekiq {
    submit: RedisPool,
    /// A worker that waits for jobs keeps its connection.
    work: RedisPool,
}

impl Sidekiq {
    pub async fn open(socket: &Path) -> Result<Self> {
        let pool = async |size: usize| {
            let manager = RedisConnectionManager::new(url(socket))?;
            bb8::Pool::builder().max_size(size as u32).build(manager).await
        };
        let workers = setting("BENCH_WORKERS", WORKERS);
        let submit = pool(setting("BENCH_SUBMITTERS", SUBMITTERS)).await?;
        Ok(Self { submit, work: pool(2 * workers).await? })
    }
}

#[async_trait]
impl Peer for Sidekiq {
    async fn submit(&self, payloads: Vec<Payload>) -> Result<()> {
        let next = Arc::new(AtomicUsize::new(0));
        let payloads = Arc::new(payloads);
        let submitters = (0..setting("BENCH_SUBMITTERS", SUBMITTERS)).map(|_| {
            let (next, payloads, pool) = (next.clone(), payloads.clone(), self.submit.clone());
            tokio::spawn(async move {
                while let Some(payload) = payloads.get(next.fetch_add(1, Ordering::Relaxed)) {
                    NoOp::perform_async(&pool, payload.clone()).await?;
                }
                anyhow::Ok(())
            })
        });
        try_join_all(submitters).await?.into_iter().collect()
    }

    async fn submit_one(&self, payload: Payload) -> Result<()> {
        Ok(NoOp::perform_async(&self.submit, payload).await?)
    }

    async fn work(&self, tally: Arc<Tally>) -> Result<()> {
        let config = ProcessorConfig::default().num_workers(setting("BENCH_WORKERS", WORKERS));
        let queues = vec![QUEUE.to_owned()];
        let mut processor = Processor::new(self.work.clone(), queues).with_config(config);
        processor.register(NoOp { tally });
        tokio::spawn(processor.run());
        Ok(())
    }
}

struct NoOp {
    tally: Arc<Tally>,
}

#[async_trait]
impl Worker<Payload> for NoOp {
    fn opts() -> WorkerOpts<Payload, Self> {
        WorkerOpts::new().queue(QUEUE)
    }

    async fn perform(&self, payload: Payload) -> sidekiq::Result<()> {
        self.tally.begin(payload.n).await;
        self.tally.end();
        Ok(())
    }
}
