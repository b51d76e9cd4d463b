//! That a sandbox is quick; generous bounds, the numbers are printed.

use std::time::{Duration, Instant};

use rhizome_engine::Sandboxes;
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, sandboxes, script};

/// Milliseconds of each, from the quickest on.
async fn times(sandboxes: &Sandboxes, count: usize, pause: Duration) -> Vec<f64> {
    let (host, script) = (Fake::default(), script("output(\"ok\", 1);"));
    let mut times = Vec::new();
    for _ in 0..count {
        tokio::time::sleep(pause).await;
        let begin = Instant::now();
        sandboxes.evaluate(&script, &host, CancellationToken::new()).await.unwrap();
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_quick() {
    let sandboxes = sandboxes();
    for (what, pause) in [("one after the other", 0), ("each when it is calm", 80)] {
        let times = times(&sandboxes, 40, Duration::from_millis(pause)).await;
        println!("{what}: p50 {:.2} ms, p95 {:.2} ms", times[20], times[38]);
        assert!(times[20] < 50.0, "{times:?}");
    }
    sandboxes.close().await;
}
