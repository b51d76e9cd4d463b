//! How the queues stand.

use std::collections::{BTreeMap, HashMap};

use redis::streams::{StreamInfoGroupsReply, StreamRangeReply};
use rhizome_model::JobState;

use crate::{Queue, QueueError, keys};

/// How one queue stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    pub queue: String,
    pub ready: u64,
    pub running: u64,
    pub delayed: u64,
    /// Dead letters that are kept.
    pub dead: u64,
    /// Milliseconds that the oldest ready job has waited.
    pub oldest_ms: u64,
    /// Jobs that ended since the queue was made, by state.
    pub ended: BTreeMap<JobState, u64>,
}

impl Queue {
    /// All queues that a job was ever submitted to or a runner ever served, by name.
    pub async fn stats(&self) -> Result<Vec<QueueStats>, QueueError> {
        let mut list = redis::pipe();
        list.cmd("SMEMBERS").arg(keys::QUEUES).cmd("HGETALL").arg(keys::COUNTERS).cmd("TIME");
        let (mut queues, counters, time): (Vec<String>, HashMap<String, i64>, (u64, u64)) =
            self.link.query_all(&list).await?;
        queues.sort_unstable();
        let now = time.0 * 1000 + time.1 / 1000;
        let mut stats = Vec::with_capacity(queues.len());
        for queue in queues {
            stats.push(self.stats_of(queue, &counters, now).await?);
        }
        Ok(stats)
    }

    async fn stats_of(
        &self,
        queue: String,
        counters: &HashMap<String, i64>,
        now: u64,
    ) -> Result<QueueStats, QueueError> {
        let counted = |word: &str| {
            let count = counters.get(&format!("{queue} {word}")).copied().unwrap_or_default();
            u64::try_from(count).unwrap_or_default()
        };
        let ended = JobState::ALL.into_iter().filter(|s| s.is_ended()).filter_map(|state| {
            let word = serde_json::to_value(state).ok()?;
            let count = counted(word.as_str()?);
            (count > 0).then_some((state, count))
        });
        let mut stats = QueueStats {
            ready: 0,
            running: 0,
            delayed: counted("delayed"),
            dead: 0,
            oldest_ms: 0,
            ended: ended.collect(),
            queue: queue.clone(),
        };
        let mut look = redis::pipe();
        look.cmd("XLEN").arg(keys::dead(&queue));
        let (dead,): (u64,) = self.link.query_all(&look).await?;
        stats.dead = dead;
        for lane in keys::lane_names(&queue) {
            let lane = keys::lane(&lane);
            let mut look = redis::pipe();
            look.cmd("XLEN").arg(&lane).cmd("XINFO").arg("GROUPS").arg(&lane);
            let (length, groups): (u64, StreamInfoGroupsReply) = self.link.query_all(&look).await?;
            let Some(group) = groups.groups.first() else { continue };
            let running = group.pending as u64;
            stats.running += running;
            stats.ready += length.saturating_sub(running);
            if length > running {
                let oldest = self.oldest(&lane, &group.last_delivered_id).await?;
                stats.oldest_ms =
                    stats.oldest_ms.max(oldest.map_or(0, |at| now.saturating_sub(at)));
            }
        }
        Ok(stats)
    }

    /// When the first entry after `delivered` came.
    async fn oldest(&self, lane: &str, delivered: &str) -> Result<Option<u64>, QueueError> {
        let mut first = redis::cmd("XRANGE");
        first.arg(lane).arg(format!("({delivered}")).arg("+").arg("COUNT").arg(1);
        let first: StreamRangeReply = self.link.query(&first).await?;
        let at = |entry: &redis::streams::StreamId| entry.id.split('-').next()?.parse().ok();
        Ok(first.ids.first().and_then(at))
    }
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
