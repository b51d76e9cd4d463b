//! How fast queues end their jobs, and what Prometheus is told of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use rhizome_model::JobState;
use rhizome_queue::QueueStats;
use tokio_util::sync::CancellationToken;

use crate::Supervisor;

const EVERY: Duration = Duration::from_secs(5);
/// A rate is that of the last minute.
const WINDOW: Duration = Duration::from_secs(60);
/// Over less time than this a rate says nothing.
const SHORTEST: Duration = Duration::from_millis(500);

/// How many jobs had ended, by queue, at some moments of the last minute.
#[derive(Default)]
pub struct Rates(Mutex<VecDeque<(Instant, BTreeMap<String, u64>)>>);

impl Rates {
    /// Jobs that ended per second, given how many have until now.
    pub fn per_s(&self, queue: &str, ended: &BTreeMap<JobState, u64>) -> f64 {
        self.per_s_at(Instant::now(), queue, ended.values().sum())
    }

    fn per_s_at(&self, now: Instant, queue: &str, ended: u64) -> f64 {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |at: &Instant| now.saturating_duration_since(*at);
        let oldest = samples.iter().find(|(at, _)| since(at) <= WINDOW);
        let Some((at, before)) = oldest.filter(|(at, _)| since(at) >= SHORTEST) else { return 0.0 };
        // A queue that was not there had ended nothing.
        let before = before.get(queue).copied().unwrap_or_default();
        ended.saturating_sub(before) as f64 / since(at).as_secs_f64()
    }

    fn note(&self, now: Instant, stats: &[QueueStats]) {
        let ended = stats.iter().map(|s| (s.queue.clone(), s.ended.values().sum())).collect();
        self.note_ended(now, ended);
    }

    fn note_ended(&self, now: Instant, ended: BTreeMap<String, u64>) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|(at, _)| now.saturating_duration_since(*at) < WINDOW);
        samples.push_back((now, ended));
    }
}

impl Supervisor {
    /// Looks at the queues every few seconds until told to stop.
    pub(crate) async fn watch_queues(&self, stop: CancellationToken) {
        let watch = async {
            loop {
                match self.queue.stats().await {
                    Ok(stats) => {
                        self.rates.note(Instant::now(), &stats);
                        stats.iter().for_each(tell);
                    }
                    Err(error) => tracing::debug!(%error, "the queues cannot be looked at"),
                }
                for pool in self.pools.view() {
                    let queues = pool.queues.join(",");
                    gauge!("rhizome_runners", "queues" => queues).set(pool.runners.len() as f64);
                }
                self.joined.measure();
                tokio::time::sleep(EVERY).await;
            }
        };
        stop.run_until_cancelled(watch).await;
    }
}

fn tell(stats: &QueueStats) {
    let queue = || stats.queue.clone();
    gauge!("rhizome_queue_ready", "queue" => queue()).set(stats.ready as f64);
    gauge!("rhizome_queue_running", "queue" => queue()).set(stats.running as f64);
    gauge!("rhizome_queue_delayed", "queue" => queue()).set(stats.delayed as f64);
    gauge!("rhizome_queue_retrying", "queue" => queue()).set(stats.retrying as f64);
    gauge!("rhizome_queue_waiting", "queue" => queue()).set(stats.waiting as f64);
    gauge!("rhizome_queue_dead", "queue" => queue()).set(stats.dead as f64);
    gauge!("rhizome_queue_slots", "queue" => queue()).set(stats.slots as f64);
    let oldest = stats.oldest_ms as f64 / 1000.0;
    gauge!("rhizome_queue_oldest_seconds", "queue" => queue()).set(oldest);
    for (state, jobs) in &stats.ended {
        let state = serde_json::to_value(state).unwrap_or_default();
        let state = state.as_str().unwrap_or_default().to_owned();
        counter!("rhizome_queue_ended_total", "queue" => queue(), "state" => state).absolute(*jobs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(jobs: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([("volume".to_owned(), jobs)])
    }

    #[test]
    fn a_rate_is_over_the_last_minute_at_most() {
        let (rates, start) = (Rates::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(rates.per_s_at(at(0), "volume", 100), 0.0, "nothing is known yet");
        rates.note_ended(at(0), ended(100));
        assert_eq!(rates.per_s_at(at(0), "volume", 150), 0.0, "too soon");
        assert_eq!(rates.per_s_at(at(10), "volume", 150), 5.0);
        assert_eq!(rates.per_s_at(at(10), "machine", 20), 2.0, "a new queue");
        assert_eq!(rates.per_s_at(at(10), "volume", 50), 0.0, "it began anew");
        rates.note_ended(at(40), ended(400));
        assert_eq!(rates.per_s_at(at(70), "volume", 400), 0.0, "what was before does not count");
        for second in 0..1000 {
            rates.note_ended(at(second), ended(second));
        }
        assert!(rates.0.lock().unwrap().len() <= 61);
    }
}
