//! The durable job queue of a node, and the store of what the node holds: the only place that
//! knows a Redis key.
//!
//! ```text
//!   submit ─▶ lanes (a stream per queue and priority) ─▶ Runner ─▶ Lease ─▶ finish ─▶ record, news
//!               ▲                                          │ retry
//!               └─────────── maintain ◀── delayed ◀────────┘
//!
//!   accept ─▶ task + reservation + nonce + job + events, all or nothing
//! ```
//!
//! - A job is in exactly one place: a lane, the delayed, or ended. What moves it is one atomic
//!   function inside redis-server (`library/`), and the states are those of
//!   [`JobState::step`](rhizome_model::JobState::step).
//! - A lease is an entry of a lane that the group has given to one runner. Every write of a lease
//!   names the entry and the runner, and is refused once the entry is no longer that runner's.
//!   Given back, a job gets a new entry: an old lease can never be taken for a new one.
//! - The only clock is redis-server's.
//! - A job whose deadline is over does not start: whoever is given it asks first, and it ends there.
//! - What piles up during a round trip goes together in the next (`batch`): single submits, finishes.
//!   Each is still judged by itself.
//! - Whatever is repeated because an answer was lost changes nothing the second time.
//!
//! Must not know: what a job does.

mod audit;
mod backoff;
mod batch;
pub mod bench;
mod connect;
mod error;
mod events;
mod exclusive;
mod jobs;
mod keys;
mod library;
mod link;
mod maintain;
mod member;
mod news;
mod output;
mod pending;
mod periodic;
mod record;
mod releases;
mod runner;
mod settings;
mod spool;
mod stats;
mod stored;
mod tasks;

use std::sync::Arc;

pub use audit::Audit;
pub use backoff::{JOB_RETRY, backoff};
pub use connect::{Durability, QueueConfig};
pub use error::QueueError;
pub use jobs::Submission;
pub use maintain::{Fence, MaintainOptions};
pub use periodic::Periodic;
pub use record::{Attempt, JobRecord};
pub use runner::{CancelReason, Lease, Retried, Runner, RunnerOptions};
pub use settings::PoolSetting;
pub use stats::{AccountStats, QueueStats};
pub use tasks::{Accept, Acceptance};

use batch::Batcher;
use link::Link;
use news::News;
use rhizome_model::Job;

/// A function takes at most this many items, so that redis-server never stops for long.
pub(crate) const BATCH: usize = 256;

/// A handle to the queue of one node; cheap to clone.
#[derive(Clone)]
pub struct Queue {
    link: Arc<Link>,
    news: Arc<News>,
    /// Jobs that are submitted one by one.
    singles: Arc<Batcher<Job, Submission>>,
}

impl Queue {
    /// Waits until redis-server is ready, checks and sets what the durability needs, and loads the
    /// functions.
    pub async fn connect(config: &QueueConfig) -> Result<Self, QueueError> {
        let link = Arc::new(Link::new(&config.socket)?);
        connect::prepare(&link, config).await?;
        Ok(Self::on(link))
    }

    /// The same queue, for those who wait for redis-server as long as it takes.
    pub fn patient(&self) -> Self {
        Self::on(Arc::new(self.link.patient()))
    }

    fn on(link: Arc<Link>) -> Self {
        let to = link.clone();
        let singles = Batcher::new(move |some: Vec<Job>| {
            let to = to.clone();
            async move { jobs::submit_all(&to, &some).await }
        });
        let news = Arc::new(News::new(link.clone()));
        Self { link, news, singles: Arc::new(singles) }
    }
}
