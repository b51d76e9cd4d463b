//! How the queues stand.

use std::collections::{BTreeMap, HashMap, HashSet};

use redis::Value;
use redis::streams::{StreamInfoGroupsReply, StreamPendingCountReply};
use rhizome_model::api::PoolMode;
use rhizome_model::{AccountId, JobId, JobState};

use crate::pending::lanes_of;
use crate::{Queue, QueueError, keys, stored};

/// How one queue stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    pub queue: String,
    pub mode: PoolMode,
    /// Jobs at a time of all its runners.
    pub slots: u64,
    pub ready: u64,
    pub running: u64,
    /// For a time: a pause before another attempt, or because they are not to start earlier.
    pub delayed: u64,
    /// Of those, the ones that failed before.
    pub retrying: u64,
    /// For other jobs.
    pub waiting: u64,
    /// Dead letters that are kept.
    pub dead: u64,
    /// Milliseconds that the oldest ready job has waited.
    pub oldest_ms: u64,
    /// Jobs that ended since the queue was made, by state.
    pub ended: BTreeMap<JobState, u64>,
    pub accounts: Vec<AccountStats>,
}

/// What of a queue is one account's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountStats {
    pub account: AccountId,
    pub ready: u64,
    pub running: u64,
    pub ended: BTreeMap<JobState, u64>,
}

/// The ready lane has no more entries than the runners have slots.
const LOOK: usize = 100_000;

/// Numbers of a node by their names.
type Numbers = HashMap<String, i64>;

/// What all queues are read from.
struct Look {
    counters: Numbers,
    load: Numbers,
    modes: BTreeMap<String, crate::PoolSetting>,
    now: u64,
}

/// How a lane stands, or what of it is one account's.
struct Lane {
    account: String,
    ready: u64,
    running: u64,
    oldest: Option<u64>,
}

impl Queue {
    /// All queues that a job was ever submitted to or a runner ever served, by name.
    pub async fn stats(&self) -> Result<Vec<QueueStats>, QueueError> {
        let mut list = redis::pipe();
        list.cmd("SMEMBERS").arg(keys::QUEUES).cmd("HGETALL").arg(keys::COUNTERS);
        list.cmd("HGETALL").arg(keys::LOAD).cmd("TIME");
        type Found = (Vec<String>, Numbers, Numbers, (u64, u64));
        let (mut queues, counters, load, time): Found = self.link.query_all(&list).await?;
        queues.sort_unstable();
        let now = time.0 * 1000 + time.1 / 1000;
        let look = Look { counters, load, modes: self.pools().await?, now };
        let mut stats = Vec::with_capacity(queues.len());
        for queue in queues {
            stats.push(self.stats_of(queue, &look).await?);
        }
        Ok(stats)
    }

    async fn stats_of(&self, queue: String, look: &Look) -> Result<QueueStats, QueueError> {
        let mut lanes = Vec::new();
        for name in lanes_of(&self.link, std::slice::from_ref(&queue)).await? {
            match name == keys::ready(&queue) {
                true => lanes.extend(self.ready_lane(&queue).await?),
                false => lanes.extend(self.lane(name).await?),
            }
        }
        let mut count = redis::cmd("XLEN");
        count.arg(keys::dead(&queue));
        let accounts = look.accounts(&queue, &lanes);
        let mut ended = BTreeMap::new();
        for (state, n) in accounts.iter().flat_map(|account| &account.ended) {
            *ended.entry(*state).or_default() += n;
        }
        let oldest = lanes.iter().filter_map(|lane| lane.oldest).min();
        let delayed = look.counter(&queue, "-", "delayed");
        Ok(QueueStats {
            mode: look.modes.get(&queue).map_or(PoolMode::Running, |pool| pool.mode),
            slots: number(&look.load, &format!("s {queue}")),
            ready: lanes.iter().map(|lane| lane.ready).sum(),
            running: lanes.iter().map(|lane| lane.running).sum(),
            delayed,
            retrying: look.counter(&queue, "-", "retrying").min(delayed),
            waiting: look.counter(&queue, "-", "waiting"),
            dead: self.link.query(&count).await?,
            oldest_ms: oldest.map_or(0, |at| look.now.saturating_sub(at)),
            ended,
            accounts,
            queue,
        })
    }

    async fn lane(&self, name: String) -> Result<Option<Lane>, QueueError> {
        let lane = keys::lane(&name);
        let mut look = redis::pipe();
        look.cmd("XLEN").arg(&lane).cmd("XINFO").arg("GROUPS").arg(&lane);
        type Found = (redis::RedisResult<u64>, redis::RedisResult<StreamInfoGroupsReply>);
        // One that was forgotten since it was listed has nothing in it.
        let (Ok(length), Ok(groups)): Found = self.link.query_all(look.ignore_errors()).await?
        else {
            return Ok(None);
        };
        let Some(group) = groups.groups.first() else { return Ok(None) };
        let running = group.pending as u64;
        let ready = length.saturating_sub(running);
        let oldest =
            if ready > 0 { self.oldest(&lane, &group.last_delivered_id).await? } else { None };
        let account = name.split(':').nth(1).unwrap_or_default().to_owned();
        Ok(Some(Lane { account, ready, running, oldest }))
    }

    /// The lane that accounts share: its entries say whose they are.
    async fn ready_lane(&self, queue: &str) -> Result<Vec<Lane>, QueueError> {
        let key = keys::lane(&keys::ready(queue));
        let mut look = redis::pipe();
        look.cmd("XRANGE").arg(&key).arg("-").arg("+").arg("COUNT").arg(LOOK);
        look.cmd("XPENDING").arg(&key).arg(keys::GROUP).arg("-").arg("+").arg(LOOK);
        let (entries, pending): (Vec<Value>, StreamPendingCountReply) =
            self.link.query_all(&look).await?;
        let running: HashSet<String> = pending.ids.into_iter().map(|p| p.id).collect();
        let mut lanes: BTreeMap<String, Lane> = BTreeMap::new();
        for (entry, content) in entries.into_iter().filter_map(stored::entry) {
            let account = content.account.unwrap_or_default();
            let lane = lanes.entry(account.clone()).or_insert(Lane {
                account,
                ready: 0,
                running: 0,
                oldest: None,
            });
            if running.contains(&entry) {
                lane.running += 1;
            } else {
                lane.ready += 1;
                let at = entry.split('-').next().and_then(|at| at.parse().ok());
                lane.oldest = lane.oldest.into_iter().chain(at).min();
            }
        }
        Ok(lanes.into_values().collect())
    }

    /// When the first entry after `delivered` came.
    async fn oldest(&self, lane: &str, delivered: &str) -> Result<Option<u64>, QueueError> {
        let mut first = redis::cmd("XRANGE");
        first.arg(lane).arg(format!("({delivered}")).arg("+").arg("COUNT").arg(1);
        let mut first: Vec<Value> = self.link.query(&first).await?;
        let entry = first.pop().and_then(stored::entry);
        Ok(entry.and_then(|(id, _)| id.split('-').next()?.parse().ok()))
    }

    /// The dead letters of a queue, the oldest first.
    pub async fn dead(&self, queue: &str, limit: usize) -> Result<Vec<JobId>, QueueError> {
        let mut read = redis::cmd("XRANGE");
        read.arg(keys::dead(queue)).arg("-").arg("+").arg("COUNT").arg(limit);
        let letters: redis::streams::StreamRangeReply = self.link.query(&read).await?;
        let id = |letter: &redis::streams::StreamId| letter.get::<String>("i")?.parse().ok();
        Ok(letters.ids.iter().filter_map(id).collect())
    }

    /// A job is no dead letter any more.
    pub(crate) async fn forget_dead(&self, queue: &str, id: JobId) -> Result<(), QueueError> {
        let mut read = redis::cmd("XRANGE");
        read.arg(keys::dead(queue)).arg("-").arg("+");
        let letters: redis::streams::StreamRangeReply = self.link.query(&read).await?;
        let mut drop = redis::cmd("XDEL");
        drop.arg(keys::dead(queue));
        let mut found = false;
        for letter in letters.ids {
            if letter.get::<String>("i").is_some_and(|i| i == id.to_string()) {
                drop.arg(letter.id);
                found = true;
            }
        }
        if found { self.link.query(&drop).await } else { Ok(()) }
    }
}

impl Look {
    fn counter(&self, queue: &str, account: &str, word: &str) -> u64 {
        number(&self.counters, &format!("{queue} {account} {word}"))
    }

    /// Everybody of whom the queue knows something.
    fn accounts(&self, queue: &str, lanes: &[Lane]) -> Vec<AccountStats> {
        let mut accounts: BTreeMap<AccountId, AccountStats> = BTreeMap::new();
        let new = |account| AccountStats { account, ready: 0, running: 0, ended: BTreeMap::new() };
        for (field, n) in &self.counters {
            let words: Vec<&str> = field.split(' ').collect();
            let [of, account, word] = words[..] else { continue };
            let (Ok(account), Ok(state)) = (account.parse(), crate::record::parse_state(word))
            else {
                continue;
            };
            if of == queue && *n > 0 {
                let account =
                    accounts.entry(AccountId(account)).or_insert_with(|| new(AccountId(account)));
                account.ended.insert(state, n.unsigned_abs());
            }
        }
        for lane in lanes {
            let Ok(account) = lane.account.parse() else { continue };
            let account =
                accounts.entry(AccountId(account)).or_insert_with(|| new(AccountId(account)));
            account.ready += lane.ready;
            account.running += lane.running;
        }
        accounts.into_values().collect()
    }
}

fn number(numbers: &Numbers, field: &str) -> u64 {
    numbers.get(field).and_then(|n| u64::try_from(*n).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::parse_state;

    #[test]
    fn every_state_has_a_word_that_reads_back() {
        for state in JobState::ALL {
            let word = serde_json::to_value(state).unwrap();
            assert_eq!(parse_state(word.as_str().unwrap()).unwrap(), state);
        }
    }
}
