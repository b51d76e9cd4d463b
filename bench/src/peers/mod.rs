//! The queues that are compared, each behind the same trait.

mod apalis;
mod bullmq;
mod rhizome;
mod sidekiq;

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use rhizome_queue::Durability;

use crate::payload::Payload;
use crate::tally::Tally;

pub use rhizome::runner_name;

/// One queue, with the settings that its own documentation recommends for throughput.
#[async_trait]
pub trait Peer: Send + Sync {
    /// As many at a time as is best for it.
    async fn submit(&self, payloads: Vec<Payload>) -> Result<()>;
    async fn submit_one(&self, payload: Payload) -> Result<()>;
    /// Starts a worker whose handlers call [`Tally::begin`] and [`Tally::end`], and returns.
    async fn work(&self, tally: Arc<Tally>) -> Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    Rhizome,
    /// BullMQ's official Rust port.
    BullmqRust,
    BullmqNode,
    RustySidekiq,
    ApalisRedis,
    /// Without the polling that makes its workers wake up in time.
    ApalisUnpolled,
}

impl Kind {
    /// Those that are compared when nothing else is asked for.
    pub const ALL: [Self; 5] =
        [Self::Rhizome, Self::BullmqRust, Self::BullmqNode, Self::RustySidekiq, Self::ApalisRedis];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rhizome => "rhizome",
            Self::BullmqRust => "bullmq-rust",
            Self::BullmqNode => "bullmq-node",
            Self::RustySidekiq => "rusty-sidekiq",
            Self::ApalisRedis => "apalis-redis",
            Self::ApalisUnpolled => "apalis-unpolled",
        }
    }

    /// The crate, as the lock file names it; none for what is not a crate of others.
    pub fn package(self) -> Option<&'static str> {
        match self {
            Self::Rhizome | Self::BullmqNode => None,
            Self::BullmqRust => Some("bullmq-official"),
            Self::RustySidekiq => Some("rusty-sidekiq"),
            Self::ApalisRedis | Self::ApalisUnpolled => Some("apalis-redis"),
        }
    }

    /// The most jobs that it can have at a time.
    pub fn most(self) -> usize {
        match self {
            Self::Rhizome | Self::BullmqRust | Self::BullmqNode | Self::RustySidekiq => usize::MAX,
            Self::ApalisRedis | Self::ApalisUnpolled => apalis::MOST,
        }
    }

    /// For all but BullMQ on Node, which is a program of its own.
    pub async fn open(self, socket: &Path, durability: Durability) -> Result<Box<dyn Peer>> {
        Ok(match self {
            Self::Rhizome => Box::new(rhizome::Rhizome::open(socket, durability).await?),
            Self::BullmqRust => Box::new(bullmq::Bullmq::open(socket).await?),
            Self::RustySidekiq => Box::new(sidekiq::Sidekiq::open(socket).await?),
            Self::ApalisRedis => Box::new(apalis::Apalis::open(socket, true).await?),
            Self::ApalisUnpolled => Box::new(apalis::Apalis::open(socket, false).await?),
            Self::BullmqNode => anyhow::bail!("BullMQ on Node is started as a program of Node"),
        })
    }
}

/// A setting that can be tried out without building: `BENCH_…=n`.
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn url(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}
