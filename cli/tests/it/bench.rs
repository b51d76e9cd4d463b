//! `rhizome bench queue` on real redis-servers, small.

use serde_json::Value;

use crate::harness::User;

const KEYS: [&str; 11] = [
    "submit_per_s",
    "drain_per_s",
    "drain_durable_per_s",
    "both_per_s",
    "dispatch_p50_us",
    "dispatch_p99_us",
    "redis_us_per_job",
    "bytes_per_job",
    "recovery_ms",
    "floor_submit_per_s",
    "floor_drain_per_s",
];

#[test]
fn every_figure_of_the_queue_is_there_and_is_something() {
    let small = ["bench", "queue", "--json", "--rounds", "1", "--jobs", "500", "--single", "10"];
    let run = User::new().rhizome(&small).assert().success();
    let figures: Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert_eq!(figures.as_object().unwrap().len(), KEYS.len());
    for key in KEYS {
        assert!(figures[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {}", figures[key]);
    }
}
