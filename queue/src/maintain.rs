//! Upkeep of a node's queue: what nobody else would notice in time.
//!
//! ```text
//!   round: delayed jobs that are due ─▶ their lanes; deadlines that are over ─▶ expired
//!          jobs that others waited for ─▶ those go on
//!          periodic jobs that are due ─▶ submitted
//!          runners that fell silent ─▶ fenced, given up, their leases go back
//!          consumers and lanes that hold nothing and are nobody's ─▶ forgotten
//!          redis-server's ticks ─▶ more of them while it has many keys
//!   then sleep until the next of these is due, or the control stream says that there is something
//! ```

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use redis::streams::StreamInfoConsumersReply;
use rhizome_model::JobId;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::{RECONNECT, jittered};
use crate::exclusive::Exclusive;
use crate::link::{BLOCK, Call, is_missing_group};
use crate::member::{Member, Places};
use crate::pending::{Counts, give_back, held_by, lanes_of};
use crate::{BATCH, Queue, QueueError, jobs, keys, news};

/// Rounds in which a dying runner may still claim something; it does so once at most.
const PASSES: usize = 100;
/// A lane in which nothing was for this long is forgotten.
const IDLE_LANE: Duration = Duration::from_secs(60);

/// What stands before a job's member when it is about its deadline.
const DEADLINE: &str = "x ";

/// Makes sure that nothing of a lost runner runs any more, before its jobs are given to others, and
/// that what it still had to say is said: kills it and all that it started, then delivers its spool
/// ([`Queue::deliver_spool`]).
pub trait Fence: Send + Sync {
    fn fence<'a>(
        &'a self,
        runner: &'a str,
    ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

#[derive(Clone)]
pub struct MaintainOptions {
    /// How often silent runners are looked for.
    pub sweep: Duration,
    /// A runner is silent only when redis-server was there to hear it for this long.
    pub grace: Duration,
    /// Asked before the leases of a silent runner go back.
    pub fence: Option<Arc<dyn Fence>>,
}

impl Default for MaintainOptions {
    fn default() -> Self {
        Self { sweep: Duration::from_secs(5), grace: Duration::from_secs(15), fence: None }
    }
}

/// What a maintainer knows between rounds.
struct Watch {
    connection: Exclusive,
    control: String,
    /// Since when redis-server has been there without a break.
    since: Instant,
    swept: Option<Instant>,
    /// Whether redis-server lets us set how often it ticks.
    may_pace: bool,
    /// Silent runners whose jobs are on their way back. A process that the kernel does not let die
    /// holds up nobody else's.
    lost: JoinSet<String>,
    being_lost: HashSet<String>,
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
                if let Err(error) = self.maintain_once(&options, &mut failures).await {
                    failures += 1;
                    // redis-server may take minutes to read its file.
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, failures, "upkeep of the queue waits for redis-server");
                    }
                    tokio::time::sleep(jittered(RECONNECT, failures)).await;
                }
            }
        };
        shutdown.run_until_cancelled(upkeep).await;
    }

    async fn maintain_once(
        &self,
        options: &MaintainOptions,
        failures: &mut u32,
    ) -> Result<(), QueueError> {
        let mut connection = self.link.dedicated().await.map_err(QueueError::Unavailable)?;
        let control = news::last_id(&mut connection, keys::CONTROL).await;
        let control = control.map_err(QueueError::Unavailable)?;
        let mut watch = Watch {
            connection,
            control,
            since: Instant::now(),
            swept: None,
            may_pace: true,
            lost: JoinSet::new(),
            being_lost: HashSet::new(),
        };
        *failures = 0;
        loop {
            self.release_waiting().await?;
            let due_in = self.promote_due().await?;
            let periodic_in = self.submit_periodic().await?;
            if watch.swept.is_none_or(|at| at.elapsed() >= options.sweep) {
                watch.swept = Some(Instant::now());
                if watch.since.elapsed() >= options.grace {
                    self.give_up_silent(options, &mut watch).await?;
                    self.sweep(options).await?;
                }
                watch.keep_pace(self).await;
            }
            let next_sweep =
                watch.swept.map_or(options.sweep, |at| options.sweep.saturating_sub(at.elapsed()));
            let until = [due_in, periodic_in].into_iter().flatten().min();
            let pause = until.unwrap_or(next_sweep).min(next_sweep).min(BLOCK);
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
        let (over, due): (Vec<&String>, Vec<&String>) =
            due.iter().partition(|member| member.starts_with(DEADLINE));
        for member in over {
            self.expire(member).await?;
        }
        if due.is_empty() {
            return Ok(());
        }
        let parse = |member: &&String| {
            member.parse::<Member>().map_err(|e| QueueError::corrupt("a delayed job", e))
        };
        let members = due.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let places = Places::of(members.iter().map(|member| &*member.home));
        let mut call = places.write(Call::shared("promote"));
        for member in &members {
            call = call.key(keys::record(member.id)).key(keys::more(member.id));
            call = call.num(places.place(&member.home)).arg(member.to_string());
        }
        let promoted: u64 = self.link.call(&call).await?;
        tracing::debug!(jobs = promoted, "delayed jobs are due");
        Ok(())
    }

    /// The deadline of a job is over: if it has not begun, it ends.
    async fn expire(&self, member: &str) -> Result<(), QueueError> {
        let id = member.strip_prefix(DEADLINE).and_then(|rest| rest.split(' ').next());
        let id: JobId = id
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| QueueError::corrupt("a deadline", member))?;
        match self.withdraw(id, "expired", &jobs::expired()).await {
            Ok(_) | Err(QueueError::NoSuchJob(_)) => {}
            Err(error) => return Err(error),
        }
        self.link.call(&Call::new("forget_due").key(keys::DELAYED).arg(member)).await
    }

    /// A runner died: its leases go back at once, and the attempts count. How many there were. What
    /// it left in its spool must have been delivered before, see [`Queue::deliver_spool`].
    pub async fn release_runner(&self, runner: &str) -> Result<u64, QueueError> {
        let queues = self.queues_of(runner).await?;
        self.give_up(runner).await?;
        let lanes = lanes_of(&self.link, &queues).await?;
        self.give_all_back(runner, &lanes, Counts::Yes).await
    }

    /// A runner takes nothing any more.
    pub(crate) async fn give_up(&self, runner: &str) -> Result<(), QueueError> {
        let call = Call::shared("give_up").keys([keys::RUNNERS, keys::SERVICES]).arg(runner);
        self.link.call(&call).await
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
            let identified = |(place, content): (crate::pending::Place, crate::stored::Content)| {
                let identity = jobs::identity(&content, &place.lane);
                (place, identity)
            };
            let leases: Vec<_> = held.into_iter().map(identified).collect();
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
        get.arg(keys::SERVICES).arg(runner);
        let service: Option<String> = self.link.query(&get).await?;
        match service.as_deref().and_then(|service| service.split_once(' ')) {
            Some((_, queues)) => Ok(queues.split(',').map(str::to_owned).collect()),
            None => self.queues().await,
        }
    }

    pub(crate) async fn queues(&self) -> Result<Vec<String>, QueueError> {
        let mut list = redis::cmd("SMEMBERS");
        list.arg(keys::QUEUES);
        self.link.query(&list).await
    }

    /// Gives up silent runners: each is fenced before its jobs go back.
    async fn give_up_silent(
        &self,
        options: &MaintainOptions,
        watch: &mut Watch,
    ) -> Result<(), QueueError> {
        while let Some(done) = watch.lost.try_join_next() {
            match done {
                Ok(runner) => watch.being_lost.remove(&runner),
                // Which one it was is not known: all are looked at again.
                Err(_) => watch.being_lost.drain().next().is_some(),
            };
        }
        let silent: Vec<String> = self.link.call(&Call::new("silent").key(keys::RUNNERS)).await?;
        for runner in silent {
            if !watch.being_lost.insert(runner.clone()) {
                continue;
            }
            let (queue, fence) = (self.clone(), options.fence.clone());
            watch.lost.spawn(async move {
                if let Some(fence) = fence {
                    fence.fence(&runner).await;
                }
                match queue.release_runner(&runner).await {
                    Ok(leases) => {
                        tracing::warn!(%runner, leases, "a runner fell silent; its jobs went back");
                    }
                    Err(error) => tracing::warn!(%runner, %error, "cannot give up a silent runner"),
                }
                runner
            });
        }
        Ok(())
    }

    /// Forgets what is nobody's: consumers that are no registered runner's, lanes without jobs.
    async fn sweep(&self, options: &MaintainOptions) -> Result<(), QueueError> {
        let mut list = redis::cmd("ZRANGE");
        list.arg(keys::RUNNERS).arg(0).arg(-1);
        let alive: Vec<String> = self.link.query(&list).await?;
        let lanes = lanes_of(&self.link, &self.queues().await?).await?;
        for lane in &lanes {
            self.sweep_lane(lane, &alive, options).await?;
        }
        let own: Vec<_> = lanes.iter().filter(|lane| !lane.ends_with(":r")).collect();
        for some in own.chunks(BATCH) {
            let call = Call::shared("tidy").keys(some.iter().map(|lane| keys::lane(lane)));
            let call =
                call.num(IDLE_LANE.as_millis()).args(some.iter().map(|lane| lane.as_bytes()));
            self.link.call::<u64>(&call).await?;
        }
        Ok(())
    }

    async fn sweep_lane(
        &self,
        lane: &str,
        alive: &[String],
        options: &MaintainOptions,
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
            if !alive.contains(&consumer.name) && idle >= options.grace {
                if let Some(fence) = &options.fence {
                    fence.fence(&consumer.name).await;
                }
                let lanes = [lane.to_owned()];
                self.give_all_back(&consumer.name, &lanes, Counts::Yes).await?;
            }
        }
        Ok(())
    }
}

impl Watch {
    /// Nothing else waits for it: where it cannot be set, all is as right, and slower for longer.
    async fn keep_pace(&mut self, queue: &Queue) {
        if self.may_pace
            && let Err(error) = queue.keep_pace().await
        {
            self.may_pace = false;
            tracing::warn!(%error, "redis-server's setting hz stays as it is");
        }
    }

    /// Sleeps, but not through news that are for us.
    async fn sleep(&mut self, pause: Duration) -> redis::RedisResult<()> {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            let mut read = redis::cmd("XREAD");
            read.arg("COUNT").arg(BATCH).arg("BLOCK").arg(left);
            read.arg("STREAMS").arg(keys::CONTROL).arg(&self.control);
            let news: Option<redis::streams::StreamReadReply> =
                read.query_async(&mut self.connection).await?;
            let mut ours = news.is_none();
            for message in news.into_iter().flat_map(|n| n.keys).flat_map(|k| k.ids) {
                let kind = message.get::<String>("k");
                ours |= matches!(kind.as_deref(), Some("delayed" | "released" | "settings"));
                self.control = message.id;
            }
            if ours || Instant::now() >= until {
                return Ok(());
            }
        }
    }
}
