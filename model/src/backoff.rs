//! How long to wait before trying again.

use std::time::Duration;

/// Exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): a
/// random time between nothing and a bound that doubles with each attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub cap: Duration,
}

impl Backoff {
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap }
    }

    /// The bound before jitter; `attempt` counts from 1.
    pub fn bound(self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }

    /// `jitter` is a random number from 0 to 1.
    pub fn delay(self, attempt: u32, jitter: f64) -> Duration {
        self.bound(attempt).mul_f64(jitter.clamp(0.0, 1.0))
    }
}

/// How often something is tried, and how long to wait in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts that may fail for a cause that may pass, or lose their runner.
    pub attempts: u32,
    pub backoff: Backoff,
}

impl RetryPolicy {
    /// What suits most: eight attempts, the last pauses up to half a minute.
    pub const USUAL: Self = Self {
        attempts: 8,
        backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(60)),
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_delay_is_never_longer_than_its_bound_or_the_cap(attempt: u32, jitter in 0.0..=1.0f64) {
            let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
            let delay = backoff.delay(attempt, jitter);
            prop_assert!(delay <= backoff.bound(attempt) && backoff.bound(attempt) <= backoff.cap);
        }
    }

    #[test]
    fn it_doubles() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
        let bounds: Vec<_> = (1..=10).map(|n| backoff.bound(n).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
    }
}
