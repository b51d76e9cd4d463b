//! How long to wait before redis-server is tried again.

use std::time::Duration;

use rhizome_model::Backoff;

/// Between the attempts to reach redis-server.
pub(crate) const RECONNECT: Backoff =
    Backoff::new(Duration::from_millis(20), Duration::from_millis(250));

pub(crate) fn jittered(backoff: Backoff, attempt: u32) -> Duration {
    backoff.delay(attempt, unit(uuid::Uuid::new_v4().as_u128()))
}

/// A number from 0 to 1 out of the random low bits of a version 4 UUID.
fn unit(random: u128) -> f64 {
    const BITS: u32 = 52;
    (random & ((1 << BITS) - 1)) as f64 / (1u64 << BITS) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pause_is_never_longer_than_its_bound(attempt: u32) {
            prop_assert!(jittered(RECONNECT, attempt) <= RECONNECT.bound(attempt));
            prop_assert!(RECONNECT.bound(attempt) <= RECONNECT.cap);
        }

        #[test]
        fn a_unit_is_a_unit(random: u128) {
            prop_assert!((0.0..1.0).contains(&unit(random)));
        }
    }

    #[test]
    fn pauses_are_spread_over_the_whole_bound() {
        let halves = (0..200).filter(|_| jittered(RECONNECT, 20) > RECONNECT.cap / 2).count();
        assert!((40..160).contains(&halves), "{halves} of 200 in the upper half");
    }
}
