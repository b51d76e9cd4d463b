//! Randomness for jitter. Not for keys.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use rhizome_model::Backoff;

/// A random number from 0 to 1. The standard library seeds each `RandomState` anew.
pub fn unit() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// How long to wait before attempt `attempt + 1`.
pub fn jittered(backoff: Backoff, attempt: u32) -> Duration {
    backoff.delay(attempt, unit())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_spreads_over_the_unit() {
        let draws: Vec<_> = (0..1000).map(|_| super::unit()).collect();
        assert!(draws.iter().all(|x| (0.0..=1.0).contains(x)));
        let mean = draws.iter().sum::<f64>() / 1000.0;
        assert!((0.4..0.6).contains(&mean), "{mean}");
    }
}
