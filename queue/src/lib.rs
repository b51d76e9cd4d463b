//! The durable job queue of a node, and the store of what the node holds: the only place that
//! knows a Redis key.
//!
//! ```text
//!   submit ─┬─▶ ready lane ── idle runners block on it ──┐
//!           ├─▶ lanes of the account ── taken in turn ───┴▶ Runner ─▶ Lease ─▶ finish ─▶ record, news
//!           │        ▲  ▲                                              │ retry
//!           │        │  └───── maintain ◀── delayed ◀──────────────────┤
//!           └─▶ waiting ─────▶ maintain   (after, order)               └ gone: back to the lanes
//!
//!   accept ─▶ task + reservation + nonce + job + events, all or nothing
//! ```
//!
//! # Guarantees
//!
//! Each with the cases of the crate `conformance` that show it, on Redis with functions and with
//! scripts, on Valkey, and on a model; `chaos` shows them on bad days.
//!
//! - Accepted is on disk, if the durability is `always`: `accepted_outlives_the_server`; a power cut
//!   is in `chaos`.
//! - Every accepted job ends in exactly one of succeeded, failed, cancelled, expired, quarantined:
//!   `each_of_many_is_done_once`, `a_bad_day`, `restarts_lose_and_double_nothing`,
//!   `a_job_that_kills_its_runners_is_set_aside`.
//! - At most one attempt of a job is live: `a_stale_attempt_writes_nothing`,
//!   `a_stale_attempt_touches_no_task`. That its processes are dead before the next begins is the
//!   [`Fence`]'s part.
//! - A duplicate submit returns the first one's outcome: `a_job_is_accepted_once`,
//!   `a_unique_key_is_taken_until_the_end`, `ending_twice_is_ending_once`.
//! - Nothing that is expired or cancelled starts: `nothing_starts_late`,
//!   `what_has_not_begun_in_time_expires`, `what_was_cancelled_before_it_began_never_begins`,
//!   `what_has_not_begun_is_cancelled_at_once`, `what_runs_is_told_and_ends_as_cancelled`,
//!   `children_go_with_their_parent`.
//! - While Redis is away running jobs go on; their outcomes wait on local disk and are delivered
//!   once: `an_end_during_a_freeze_waits_on_disk`, `an_end_during_an_outage_waits_on_disk`,
//!   `a_dead_runners_last_words_count`, `followers_outlive_a_restart`.
//! - An attempt counts if its runner failed or died with it, and not if it was given back:
//!   `a_released_attempt_does_not_count`, `a_dead_runners_jobs_are_done_by_others`,
//!   `a_silent_runner_is_found`, `a_lease_that_is_dropped_goes_back`,
//!   `a_failed_attempt_is_repeated_after_its_pause`, `the_history_tells_every_attempt`.
//! - A flooding account delays another's single job by no more than the slots:
//!   `a_flood_delays_another_by_no_more_than_the_slots`,
//!   `a_flood_delays_another_by_no_more_than_many_slots`, `accounts_take_turns`. Within an account
//!   the urgent go first: `the_urgent_are_served_first`, `what_was_under_way_goes_before_what_was_not`.
//! - Limits hold: `an_account_runs_no_more_than_it_may`,
//!   `an_account_starts_no_more_per_second_than_it_may`, `a_limit_may_be_lifted`,
//!   `accounts_at_their_limit_hold_up_nobody`. One that is lowered
//!   does so for what is not ready yet.
//! - Jobs that wait for others or for their turn start then, and only then:
//!   `a_job_starts_after_all_that_it_waits_for`, `many_may_wait_for_one`,
//!   `a_job_fails_with_one_that_it_waits_for`,
//!   `a_job_after_an_unknown_one_fails`, `a_wait_and_a_delay_both_count`,
//!   `an_order_is_one_at_a_time`, `an_order_outlives_a_cancelled_job`, `an_order_waits_for_a_retry`,
//!   `an_order_waits_for_a_delay`, `an_order_outlives_a_runner`.
//! - Nothing starts before its time, and what is periodic comes once per slot:
//!   `a_delayed_job_waits_for_its_time`, `a_periodic_job_comes_once_per_slot`,
//!   `a_periodic_job_outlives_a_restart`.
//! - From when a pause was answered nothing starts: `nothing_starts_in_a_paused_queue`,
//!   `a_pause_is_of_one_queue`, `a_drained_runner_takes_nothing`.
//! - What is said of a job is true, and bounded: `progress_is_seen`, `output_is_streamed`,
//!   `output_is_bounded`, `results_are_kept`, `events_are_followed_and_resumed`,
//!   `stats_count_what_is_there`, `nothing_is_left_of_what_ended`, `what_is_no_job_is_refused`.
//!
//! # How
//!
//! - A job is in exactly one place: a lane, the delayed, the waiting, or ended. What moves it is one
//!   atomic function inside redis-server (`library/`), and the states are those of
//!   [`JobState::step`](rhizome_model::JobState::step); [`Queue::audit`] looks whether that is so.
//! - A lease is an entry of a lane that the group has given to one runner. Every write of a lease
//!   names the entry and the runner, and is refused once the entry is no longer that runner's.
//!   Given back, a job gets a new entry: an old lease can never be taken for a new one.
//! - The ready lane holds no more than the runners have slots; who has more waits in lanes of its
//!   own, from which accounts are served in turn (`library/load.lua`).
//! - The only clock is redis-server's.
//! - A job whose deadline is over does not start: whoever is given it asks first, and it ends there.
//! - What piles up during a round trip goes together in the next (`batch`): single submits, finishes.
//!   Each is still judged by itself.
//! - Whatever is repeated because an answer was lost changes nothing the second time.
//!
//! Must not know: what a job does.

mod allowance;
mod audit;
mod backoff;
mod batch;
pub mod bench;
mod connect;
mod error;
mod events;
mod exclusive;
mod jobs;
mod journal;
mod keys;
mod library;
mod link;
mod maintain;
mod member;
mod news;
mod operations;
mod output;
mod pace;
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

pub use allowance::{Allow, Beyond};
pub use audit::Audit;
pub use connect::{Durability, QueueConfig};
pub use error::QueueError;
pub use jobs::Submission;
pub use journal::Entries;
pub use maintain::{Fence, MaintainOptions};
pub use operations::{Operate, Operation};
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
