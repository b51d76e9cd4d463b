//! What operators set: how many runners, whether they take jobs, what an account may use.

use std::collections::{BTreeMap, HashMap};

use redis::Value;
use redis::streams::StreamReadReply;
use rhizome_model::AccountId;
use rhizome_model::api::{AccountLimits, PoolMode};

use crate::link::{BLOCK, Call};
use crate::member::Places;
use crate::{BATCH, Queue, QueueError, jobs, keys, stored};

/// What was set of a queue's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolSetting {
    pub mode: PoolMode,
    /// How many runners; none when nobody said so.
    pub scale: Option<usize>,
}

impl Queue {
    /// From when this returns, nothing of a queue that is paused or drained starts.
    pub async fn set_mode(&self, queue: &str, mode: PoolMode) -> Result<(), QueueError> {
        let word = match mode {
            PoolMode::Running => "",
            PoolMode::Paused => "paused",
            PoolMode::Drained => "drained",
        };
        self.set(&format!("m {queue}"), word).await?;
        while mode != PoolMode::Running && self.shelve_ready(queue).await? > 0 {}
        Ok(())
    }

    pub async fn set_scale(&self, queue: &str, runners: usize) -> Result<(), QueueError> {
        self.set(&format!("n {queue}"), &runners.to_string()).await
    }

    /// What was set, by queue; a queue that nobody touched is absent.
    pub async fn pools(&self) -> Result<BTreeMap<String, PoolSetting>, QueueError> {
        let mut pools: BTreeMap<String, PoolSetting> = BTreeMap::new();
        for (field, value) in self.settings().await? {
            match field.split_once(' ') {
                Some(("m", queue)) => {
                    let mode = if value == "paused" { PoolMode::Paused } else { PoolMode::Drained };
                    pools.entry(queue.to_owned()).or_default().mode = mode;
                }
                Some(("n", queue)) => {
                    let scale = value.parse().map_err(|e| QueueError::corrupt("a scale", e))?;
                    pools.entry(queue.to_owned()).or_default().scale = Some(scale);
                }
                Some(_) | None => {}
            }
        }
        Ok(pools)
    }

    /// Returns when a setting may have changed, and after some seconds anyway.
    pub async fn pools_changed(&self) {
        let wait = async {
            let mut connection = self.link.dedicated().await?;
            let mut last = crate::news::last_id(&mut connection, keys::CONTROL).await?;
            loop {
                let mut read = redis::cmd("XREAD");
                read.arg("COUNT").arg(BATCH).arg("BLOCK").arg(BLOCK.as_millis() as u64);
                read.arg("STREAMS").arg(keys::CONTROL).arg(&last);
                let news: Option<StreamReadReply> = read.query_async(&mut connection).await?;
                for message in news.into_iter().flat_map(|n| n.keys).flat_map(|k| k.ids) {
                    if message.get::<String>("k").as_deref() == Some("settings") {
                        return Ok(());
                    }
                    last = message.id;
                }
            }
        };
        let waited: Result<redis::RedisResult<()>, _> = tokio::time::timeout(BLOCK, wait).await;
        if let Ok(Err(error)) = waited {
            tracing::debug!(%error, "cannot hear of settings; looks again later");
            tokio::time::sleep(BLOCK).await;
        }
    }

    /// What one account may use of each queue; without an account, what all may that have no limits
    /// of their own. The node's own upkeep has none.
    pub async fn set_limits(
        &self,
        account: Option<AccountId>,
        limits: AccountLimits,
    ) -> Result<(), QueueError> {
        if limits.rate_per_s.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return Err(QueueError::Refused("a rate is a number above 0".into()));
        }
        let field = account.map_or_else(|| "l *".to_owned(), |account| format!("l {account}"));
        if limits == AccountLimits::default() {
            return self.set(&field, "").await;
        }
        let word = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let value = format!(
            "{} {} {}",
            word(limits.concurrency.map(|n| n.to_string())),
            word(limits.rate_per_s.map(|rate| rate.to_string())),
            limits.burst.unwrap_or(1).max(1),
        );
        self.set(&field, &value).await
    }

    /// What was set, by account; none stands for all others.
    pub async fn limits(&self) -> Result<BTreeMap<Option<AccountId>, AccountLimits>, QueueError> {
        let mut all = BTreeMap::new();
        for (field, value) in self.settings().await? {
            let Some(account) = field.strip_prefix("l ") else { continue };
            let account = match account {
                "*" => None,
                id => Some(AccountId(id.parse().map_err(|e| QueueError::corrupt("limits", e))?)),
            };
            all.insert(account, read_limits(&value)?);
        }
        Ok(all)
    }

    pub(crate) async fn settings(&self) -> Result<HashMap<String, String>, QueueError> {
        let mut get = redis::cmd("HGETALL");
        get.arg(keys::SETTINGS);
        self.link.query(&get).await
    }

    async fn set(&self, field: &str, value: &str) -> Result<(), QueueError> {
        self.link.call(&Call::shared("set").args([field, value])).await
    }

    /// What stands ready in a stopped queue waits in lanes instead; how many were moved.
    async fn shelve_ready(&self, queue: &str) -> Result<u64, QueueError> {
        let lane = keys::ready(queue);
        let ready = keys::lane(&lane);
        let mut after = "-".to_owned();
        let mut moved = 0;
        loop {
            let mut read = redis::cmd("XRANGE");
            read.arg(&ready).arg(&after).arg("+").arg("COUNT").arg(BATCH);
            let entries: Vec<Value> = self.link.query(&read).await?;
            let entries: Vec<_> = entries.into_iter().filter_map(stored::entry).collect();
            let Some((last, _)) = entries.last() else { return Ok(moved) };
            after = format!("({last}");
            let home = |content: &stored::Content| jobs::identity(content, &lane).again();
            let homes: Vec<_> = entries.iter().map(|(_, content)| home(content)).collect();
            let places = Places::of(homes.iter().map(String::as_str));
            let mut call = places.write(Call::shared("shelve"));
            for ((entry, content), home) in entries.iter().zip(&homes) {
                call = call.key(keys::record(content.id)).num(places.place(home)).arg(entry);
            }
            moved += self.link.call::<u64>(&call).await?;
        }
    }
}

fn read_limits(text: &str) -> Result<AccountLimits, QueueError> {
    let corrupt = || QueueError::corrupt("limits", text);
    let words: Vec<&str> = text.split(' ').collect();
    let [concurrency, rate, burst] = words[..] else { return Err(corrupt()) };
    fn number<T: std::str::FromStr>(word: &str) -> Option<Option<T>> {
        if word == "-" { Some(None) } else { word.parse().ok().map(Some) }
    }
    Ok(AccountLimits {
        concurrency: number(concurrency).ok_or_else(corrupt)?,
        rate_per_s: number(rate).ok_or_else(corrupt)?,
        burst: number(burst).ok_or_else(corrupt)?,
    })
}
