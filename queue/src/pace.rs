//! How often redis-server does its own chores.
//!
//! When its table of keys grows, it moves them to the larger one for a millisecond at each tick, and a
//! few more at each command, which takes up to twice as long meanwhile. With the usual ten ticks a
//! second, ten million keys take ten minutes; with a hundred, one. A hundred ticks a second cost an
//! idle redis-server half a percent of a processor more: so only one with many keys has them.

use crate::link::Link;
use crate::{Queue, QueueError, connect};

const MANY_KEYS: u64 = 1_000_000;
const CALM: u32 = 10;
const BRISK: u32 = 100;

/// Ticks per second to be set, if any: those that an operator chose stay.
fn wanted(keys: u64, ticks: u32) -> Option<u32> {
    let many = keys > MANY_KEYS;
    if many && ticks < BRISK {
        Some(BRISK)
    } else if !many && ticks == BRISK {
        Some(CALM)
    } else {
        None
    }
}

impl Queue {
    pub(crate) async fn keep_pace(&self) -> Result<(), QueueError> {
        let keys = self.link.query(&redis::cmd("DBSIZE")).await?;
        let ticks = ticks(&self.link).await?;
        match wanted(keys, ticks) {
            Some(ticks) => connect::set(&self.link, TICKS, &ticks.to_string()).await,
            None => Ok(()),
        }
    }
}

const TICKS: &str = "hz";

async fn ticks(link: &Link) -> Result<u32, QueueError> {
    let ticks = connect::setting(link, TICKS).await?;
    ticks.parse().map_err(|e| QueueError::corrupt("redis-server's hz", format!("'{ticks}': {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_many_keys_is_brisk_and_what_an_operator_chose_stays() {
        assert_eq!(wanted(MANY_KEYS, CALM), None);
        assert_eq!(wanted(MANY_KEYS + 1, CALM), Some(BRISK));
        assert_eq!(wanted(MANY_KEYS + 1, BRISK), None);
        assert_eq!(wanted(0, BRISK), Some(CALM));
        assert_eq!(wanted(0, 50), None);
        assert_eq!(wanted(MANY_KEYS + 1, 500), None);
    }
}
