//! Upkeep of a node's queue: what nobody else would notice in time.
//!
//! ```text
//!   round: delayed jobs that are due ─▶ their lanes
//!          runners that fell silent ─▶ given up, their leases go back
//!          consumers that hold nothing and are nobody's ─▶ forgotten
//!   then sleep until the next delayed job is due, or the control stream says that an earlier came
//! ```

use std::time::Duration;

use redis::streams::StreamInfoConsumersReply;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::{RECONNECT, jittered};
use crate::exclusive::Exclusive;
use crate::link::{Call, is_missing_group};
use crate::pending::{Counts, give_back, held_by};
use crate::{BATCH, Queue, QueueError, keys, news};

/// Rounds in which a dying runner may still claim something; it does so once at most.
const PASSES: usize = 100;

#[derive(Debug, Clone, Copy)]
pub struct MaintainOptions {
    /// How often silent runners are looked for.
    pub sweep: Duration,
    /// A runner is silent only when redis-server was there to hear it for this long.
    pub grace: Duration,
}

impl Default for MaintainOptions {
    fn default() -> Self {
        Self { sweep: Duration::from_secs(5), grace: Duration::from_secs(15) }
    }
}

/// What a maintainer knows between rounds.
struct Watch {
    connection: Exclusive,
    control: String,
    /// Since when redis-server has been there without a break.
    since: Instant,
    swept: Option<Instant>,
}

impl Queue {
    /// Maintains the queue until told to stop. One per node suffices; several do no harm.
    pub async fn maintain(&self, shutdown: CancellationToken) {
        self.maintain_with(MaintainOptions::default(), shutdown).await;
    }

    pub async fn maintain_with(&self, options: MaintainOptions, shutdown: CancellationToken) {
        let upkeep = async {
            let mut failures = 0;
            loop {
                if let Err(error) = self.maintain_once(options, &mut failures).await {
                    failures += 1;
                    tracing::warn!(%error, failures, "upkeep of the queue waits for redis-server");
                    tokio::time::sleep(jittered(RECONNECT, failures)).await;
                }
            }
        };
        shutdown.run_until_cancelled(upkeep).await;
    }

    async fn maintain_once(
        &self,
        options: MaintainOptions,
        failures: &mut u32,
    ) -> Result<(), QueueError> {
        let mut connection = self.link.dedicated().await.map_err(QueueError::Unavailable)?;
        let control = news::last_id(&mut connection, keys::CONTROL).await;
        let control = control.map_err(QueueError::Unavailable)?;
        let mut watch = Watch { connection, control, since: Instant::now(), swept: None };
        *failures = 0;
        loop {
            let due_in = self.promote_due().await?;
            if watch.swept.is_none_or(|at| at.elapsed() >= options.sweep) {
                watch.swept = Some(Instant::now());
                self.sweep(options, watch.since.elapsed() >= options.grace).await?;
            }
            let next_sweep =
                watch.swept.map_or(options.sweep, |at| options.sweep.saturating_sub(at.elapsed()));
            let pause = due_in.unwrap_or(next_sweep).min(next_sweep).min(crate::link::BLOCK);
            watch.sleep(pause).await.map_err(QueueError::Unavailable)?;
        }
    }

    /// Moves what is due to its lanes; how long until the next is.
    pub(crate) async fn promote_due(&self) -> Result<Option<Duration>, QueueError> {
        loop {
            let call = Call::new("due").key(keys::DELAYED).num(BATCH);
            let mut reply: Vec<String> = self.link.call(&call).await?;
            let due = reply.split_off(reply.len().min(1));
            if !due.is_empty() {
                self.promote(&due).await?;
            }
            let wait: i64 = reply
                .first()
                .and_then(|ms| ms.parse().ok())
                .ok_or_else(|| QueueError::corrupt("the delayed jobs", "no time"))?;
            if wait != 0 {
                return Ok(u64::try_from(wait).ok().map(Duration::from_millis));
            }
        }
    }

    async fn promote(&self, due: &[String]) -> Result<(), QueueError> {
        let mut call = Call::new("promote").key(keys::DELAYED).key(keys::COUNTERS);
        for member in due {
            let (id, lane) = member
                .split_once(' ')
                .ok_or_else(|| QueueError::corrupt("a delayed job", member))?;
            call = call.key(keys::record_of(id)).key(keys::lane(lane));
            call = call.args([member, id, keys::queue_of(lane), lane]);
        }
        let promoted: u64 = self.link.call(&call).await?;
        tracing::debug!(jobs = promoted, "delayed jobs are due");
        Ok(())
    }

    /// A runner died: its leases go back at once, and the attempts count. How many there were.
    pub async fn release_runner(&self, runner: &str) -> Result<u64, QueueError> {
        let queues = self.queues_of(runner).await?;
        let give_up = Call::new("give_up")
            .keys([keys::RUNNERS, keys::RUNNER_QUEUES, keys::CONTROL])
            .arg(runner);
        self.link.call::<()>(&give_up).await?;
        self.give_all_back(runner, &keys::lanes_to_serve(&queues), Counts::Yes).await
    }

    /// Gives back all that a runner that was given up holds, and forgets it.
    pub(crate) async fn give_all_back(
        &self,
        runner: &str,
        lanes: &[String],
        counts: Counts,
    ) -> Result<u64, QueueError> {
        let mut given = 0;
        for _ in 0..PASSES {
            let held = held_by(&self.link, runner, lanes).await?;
            let leases: Vec<_> = held.into_iter().map(|(place, c)| (place, c.id)).collect();
            given += give_back(&self.link, runner, counts, &leases).await?;
            if leases.is_empty() && self.forget(lanes, &[runner.to_owned()]).await? == 0 {
                break;
            }
        }
        Ok(given)
    }

    async fn forget(&self, lanes: &[String], names: &[String]) -> Result<u64, QueueError> {
        let call = Call::new("forget")
            .key(keys::RUNNERS)
            .keys(lanes.iter().map(|l| keys::lane(l)))
            .args(names);
        self.link.call(&call).await
    }

    /// The queues that a runner serves; all, if it never said so.
    async fn queues_of(&self, runner: &str) -> Result<Vec<String>, QueueError> {
        let mut get = redis::cmd("HGET");
        get.arg(keys::RUNNER_QUEUES).arg(runner);
        let queues: Option<String> = self.link.query(&get).await?;
        match queues {
            Some(queues) => Ok(queues.split(',').map(str::to_owned).collect()),
            None => self.queues().await,
        }
    }

    async fn queues(&self) -> Result<Vec<String>, QueueError> {
        let mut list = redis::cmd("SMEMBERS");
        list.arg(keys::QUEUES);
        self.link.query(&list).await
    }

    /// Gives up silent runners, and consumers that are no registered runner's.
    async fn sweep(&self, options: MaintainOptions, watched: bool) -> Result<(), QueueError> {
        if !watched {
            return Ok(());
        }
        let silent: Vec<String> = self.link.call(&Call::new("silent").key(keys::RUNNERS)).await?;
        for runner in silent {
            let leases = self.release_runner(&runner).await?;
            tracing::warn!(%runner, leases, "a runner fell silent; its jobs went back");
        }
        let mut list = redis::cmd("ZRANGE");
        list.arg(keys::RUNNERS).arg(0).arg(-1);
        let alive: Vec<String> = self.link.query(&list).await?;
        for lane in self.queues().await?.iter().flat_map(|q| keys::lane_names(q)) {
            self.sweep_lane(&lane, &alive, options.grace).await?;
        }
        Ok(())
    }

    async fn sweep_lane(
        &self,
        lane: &str,
        alive: &[String],
        grace: Duration,
    ) -> Result<(), QueueError> {
        let mut list = redis::cmd("XINFO");
        list.arg("CONSUMERS").arg(keys::lane(lane)).arg(keys::GROUP);
        let consumers: StreamInfoConsumersReply = match self.link.query(&list).await {
            Ok(consumers) => consumers,
            Err(QueueError::Unavailable(e)) if is_missing_group(&e) => return Ok(()),
            Err(error) => return Err(error),
        };
        for consumer in consumers.consumers {
            let idle = Duration::from_millis(consumer.idle as u64);
            if !alive.contains(&consumer.name) && idle >= grace {
                let lanes = [lane.to_owned()];
                self.give_all_back(&consumer.name, &lanes, Counts::Yes).await?;
            }
        }
        Ok(())
    }
}

impl Watch {
    /// Sleeps, but not through news of the control stream.
    async fn sleep(&mut self, pause: Duration) -> redis::RedisResult<()> {
        let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(BATCH).arg("BLOCK").arg(pause);
        read.arg("STREAMS").arg(keys::CONTROL).arg(&self.control);
        let news: Option<redis::streams::StreamReadReply> =
            read.query_async(&mut self.connection).await?;
        for entry in news.into_iter().flat_map(|n| n.keys).flat_map(|k| k.ids) {
            self.control = entry.id;
        }
        Ok(())
    }
}
