//! Times: microseconds in the database, RFC 3339 on the wire.

use rhizome_model::registrar::ONLINE_MINUTES;

pub fn now_micros() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

pub use rhizome_service::clock::now_secs;

pub fn micros_of_secs(secs: i64) -> i64 {
    secs.saturating_mul(1_000_000)
}

pub fn secs_of_micros(micros: i64) -> i64 {
    micros.div_euclid(1_000_000)
}

/// A node that was seen after this is online.
pub fn online_since() -> i64 {
    minutes_ago(ONLINE_MINUTES)
}

pub fn minutes_ago(minutes: i64) -> i64 {
    now_micros().saturating_sub(micros_of_secs(minutes.saturating_mul(60)))
}

pub fn rfc3339(micros: i64) -> String {
    // What is out of range was never written; the epoch is a visible answer to what cannot happen.
    jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(super::rfc3339(1_700_000_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(super::rfc3339(1_700_000_000_123_456), "2023-11-14T22:13:20.123456Z");
    }
}
