//! The short form of `make chaos`.

use std::time::Duration;

use rhizome_chaos::run::Day;

/// Another one each time; a seed that failed is tried again with this.
const SEED_VARIABLE: &str = "RHIZOME_CHAOS_SEED";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_thousand_jobs_on_a_bad_day() {
    let seed = std::env::var(SEED_VARIABLE).ok().map(|seed| seed.parse().unwrap());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("{SEED_VARIABLE}={seed}");
    let day = Day {
        worker: env!("CARGO_BIN_EXE_chaos-worker").into(),
        jobs: 3000,
        runners: 5,
        slots: 8,
        seed,
        lasts: Duration::from_secs(20),
        heals: Duration::from_secs(60),
        long: false,
    };
    let evening = day.run(|what| println!("{what}")).await.unwrap();
    println!("{}", evening.verdict);
    evening.stories(5).iter().for_each(|story| println!("{story}"));
    assert!(evening.verdict.holds(), "{SEED_VARIABLE}={seed}: {}", evening.verdict);
    assert!(evening.verdict.deaths > 5, "it was no bad day");
}
