//! All that there is of jobs, read key by key.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use redis::streams::StreamRangeReply;
use redis::streams::{StreamInfoConsumersReply, StreamInfoGroupsReply, StreamPendingCountReply};
use redis::{FromRedisValue, Value};
use rhizome_model::JobId;

use crate::link::Link;
use crate::{QueueError, keys, record, stored};

/// More than a node of a test ever holds in one place.
const MOST: usize = 1_000_000;

/// Fields, and whether it goes with time.
type More = (HashMap<String, Vec<u8>>, bool);

#[derive(Default)]
pub(super) struct Look {
    /// With whether it goes with time.
    pub(super) records: BTreeMap<JobId, (String, bool)>,
    pub(super) more: BTreeMap<JobId, More>,
    pub(super) lanes: BTreeMap<String, Lane>,
    pub(super) listed: BTreeSet<String>,
    /// Of lanes: both ways.
    pub(super) numbers: BTreeMap<String, String>,
    pub(super) delayed: BTreeSet<String>,
    pub(super) waited: BTreeMap<String, String>,
    pub(super) unique: BTreeMap<String, String>,
    /// Ids of jobs, and names of orders.
    pub(super) releases: BTreeSet<String>,
    pub(super) orders: BTreeMap<String, Vec<String>>,
    pub(super) turns: BTreeMap<String, Vec<String>>,
    pub(super) load: BTreeMap<String, i64>,
    pub(super) services: BTreeMap<String, String>,
    pub(super) counters: BTreeMap<String, i64>,
}

#[derive(Default)]
pub(super) struct Lane {
    /// With the account, where the lane does not say it.
    pub(super) entries: BTreeMap<String, (JobId, Option<String>)>,
    pub(super) pending: BTreeSet<String>,
    pub(super) delivered: String,
    pub(super) consumers: Vec<String>,
}

impl Look {
    pub(super) async fn at(link: &Link) -> Result<Self, QueueError> {
        let [_, _, load, _, _, delayed, waited, releases, unique, _, lanes, _, numbers] =
            keys::SHARED;
        let mut look = Self {
            listed: ask(link, "SMEMBERS", &[lanes]).await?,
            numbers: ask(link, "HGETALL", &[numbers]).await?,
            delayed: ask(link, "ZRANGE", &[delayed, "0", "-1"]).await?,
            waited: ask(link, "HGETALL", &[waited]).await?,
            unique: ask(link, "HGETALL", &[unique]).await?,
            load: ask(link, "HGETALL", &[load]).await?,
            services: ask(link, "HGETALL", &[keys::SERVICES]).await?,
            counters: ask(link, "HGETALL", &[keys::COUNTERS]).await?,
            ..Self::default()
        };
        let notes: StreamRangeReply = ask(link, "XRANGE", &[releases, "-", "+"]).await?;
        let words = |note: &redis::streams::StreamId| note.get("i").or_else(|| note.get("o"));
        look.releases = notes.ids.iter().filter_map(words).collect();
        let mut cursor = "0".to_owned();
        loop {
            let scan = [cursor.as_str(), "MATCH", "{n}:*", "COUNT", "1000"];
            let (next, some): (String, Vec<String>) = ask(link, "SCAN", &scan).await?;
            for key in some {
                look.take(link, &key).await?;
            }
            if next == "0" {
                return Ok(look);
            }
            cursor = next;
        }
    }

    async fn take(&mut self, link: &Link, key: &str) -> Result<(), QueueError> {
        let Some((kind, name)) = key.strip_prefix("{n}:").and_then(|rest| rest.split_once(':'))
        else {
            return Ok(());
        };
        let expires = async || Ok::<_, QueueError>(ask::<i64>(link, "TTL", &[key]).await? >= 0);
        match kind {
            "job" => {
                let id = id(name)?;
                let text = record::text(link, id).await?.unwrap_or_default();
                self.records.insert(id, (text, expires().await?));
            }
            "more" => {
                let more = (ask(link, "HGETALL", &[key]).await?, expires().await?);
                self.more.insert(id(name)?, more);
            }
            "order" => {
                let members = ask(link, "LRANGE", &[key, "0", "-1"]).await?;
                self.orders.insert(name.to_owned(), members);
            }
            "turns" => {
                let accounts = ask(link, "ZRANGE", &[key, "0", "-1"]).await?;
                self.turns.insert(name.to_owned(), accounts);
            }
            "lane" => {
                self.lanes.insert(name.to_owned(), lane(link, key).await?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The lane of its account, of a job that is delayed or waits.
    pub(super) fn home_of(&self, id: JobId, record: &str) -> String {
        let noted = record.split(' ').nth(1).map(str::to_owned);
        noted.unwrap_or_else(|| format!("unknown:{id}"))
    }
}

async fn lane(link: &Link, key: &str) -> Result<Lane, QueueError> {
    let mut lane = Lane::default();
    let entries: Vec<Value> = ask(link, "XRANGE", &[key, "-", "+"]).await?;
    for (entry, content) in entries.into_iter().filter_map(stored::entry) {
        lane.entries.insert(entry, (content.id, content.account));
    }
    let mut pending = redis::cmd("XPENDING");
    pending.arg(key).arg(keys::GROUP).arg("-").arg("+").arg(MOST);
    let pending: StreamPendingCountReply = link.query(&pending).await?;
    lane.pending = pending.ids.into_iter().map(|held| held.id).collect();
    let groups: StreamInfoGroupsReply = ask(link, "XINFO", &["GROUPS", key]).await?;
    lane.delivered =
        groups.groups.into_iter().next().map(|g| g.last_delivered_id).unwrap_or_default();
    let consumers: StreamInfoConsumersReply =
        ask(link, "XINFO", &["CONSUMERS", key, keys::GROUP]).await?;
    lane.consumers = consumers.consumers.into_iter().map(|consumer| consumer.name).collect();
    Ok(lane)
}

async fn ask<T: FromRedisValue>(link: &Link, name: &str, words: &[&str]) -> Result<T, QueueError> {
    let mut cmd = redis::cmd(name);
    cmd.arg(words);
    link.query(&cmd).await
}

fn id(text: &str) -> Result<JobId, QueueError> {
    text.parse().map_err(|e| QueueError::corrupt(format!("the key of job {text}"), e))
}
