//! Jobs that come again and again.
//!
//! Time is cut into slots of the period's length, counted from 1970 by redis-server's clock. Per slot
//! there is one job, whose id is derived from the name and the slot: however many maintain the queue,
//! and whenever they die, it comes once. A slot in which nobody maintained it is left out.

use std::collections::HashMap;
use std::time::Duration;

use rhizome_model::{DeploymentId, Job, JobId, Version};
use serde::{Deserialize, Serialize};

use crate::record::to_json;
use crate::{Queue, QueueError, keys};

/// A job that comes once per period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Periodic {
    /// Unique on the node.
    pub name: String,
    /// At least a second.
    pub every: Duration,
    /// Its id is replaced.
    pub job: Job,
}

impl Queue {
    /// Replaces what was set before. It begins with the next slot of each.
    pub async fn set_periodic(&self, jobs: &[Periodic]) -> Result<(), QueueError> {
        if let Some(short) = jobs.iter().find(|p| p.every < Duration::from_secs(1)) {
            let message = format!("'{}' comes more often than once a second", short.name);
            return Err(QueueError::Refused(message));
        }
        let now = self.time().await?;
        let mut set = redis::pipe();
        set.atomic().cmd("DEL").arg(keys::PERIODIC).ignore();
        for periodic in jobs {
            set.cmd("HSET").arg(keys::PERIODIC).arg(&periodic.name).arg(to_json(periodic)?);
            set.ignore().cmd("HSETNX").arg(keys::PERIODIC_SLOTS).arg(&periodic.name);
            set.arg(slot(now, periodic.every)).ignore();
        }
        set.cmd("XADD").arg(keys::CONTROL).arg("*").arg("k").arg("settings").ignore();
        self.link.query_all(&set).await
    }

    /// Submits what is due; how long until the next is.
    pub(crate) async fn submit_periodic(&self) -> Result<Option<Duration>, QueueError> {
        let mut get = redis::pipe();
        get.cmd("HVALS").arg(keys::PERIODIC).cmd("HGETALL").arg(keys::PERIODIC_SLOTS);
        type Found = (Vec<String>, HashMap<String, i64>);
        let (all, slots): Found = self.link.query_all(&get).await?;
        if all.is_empty() {
            return Ok(None);
        }
        let now = self.time().await?;
        let mut next: Option<Duration> = None;
        for text in &all {
            let periodic: Periodic =
                serde_json::from_str(text).map_err(|e| QueueError::corrupt("a periodic job", e))?;
            let current = slot(now, periodic.every);
            if slots.get(&periodic.name).is_none_or(|done| *done < current) {
                self.submit(&[in_slot(&periodic, current)?]).await?;
                let mut done = redis::cmd("HSET");
                done.arg(keys::PERIODIC_SLOTS).arg(&periodic.name).arg(current);
                self.link.query::<()>(&done).await?;
            }
            let begins = (current + 1) * millis(periodic.every);
            let wait = Duration::from_millis(u64::try_from(begins - now).unwrap_or_default());
            next = Some(next.map_or(wait, |soonest| soonest.min(wait)));
        }
        Ok(next)
    }

    /// Unix milliseconds by redis-server's clock.
    async fn time(&self) -> Result<i64, QueueError> {
        let (seconds, micros): (i64, i64) = self.link.query(&redis::cmd("TIME")).await?;
        Ok(seconds * 1000 + micros / 1000)
    }
}

fn millis(every: Duration) -> i64 {
    i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1)
}

fn slot(now: i64, every: Duration) -> i64 {
    now / millis(every)
}

fn in_slot(periodic: &Periodic, slot: i64) -> Result<Job, QueueError> {
    let name = "periodic".parse().map_err(|e| QueueError::corrupt("a name", e))?;
    let deployment = DeploymentId { account: periodic.job.account, name };
    let id = JobId::derived(&deployment, Version(0), &format!("{} {slot}", periodic.name));
    Ok(Job { id, ..periodic.job.clone() })
}
