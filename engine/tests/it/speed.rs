//! That a sandbox is quick; generous bounds, the numbers are printed.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::support::{Fake, sandboxes, script};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_is_quick() {
    let sandboxes = sandboxes();
    let (host, script) = (Fake::default(), script("output(\"ok\", 1);"));
    let mut times = Vec::new();
    for _ in 0..40 {
        let begin = Instant::now();
        sandboxes.evaluate(&script, &host, CancellationToken::new()).await.unwrap();
        times.push(begin.elapsed());
    }
    println!("the first: {:?}", times[0]);
    times.sort();
    println!("p50 {:?}, p95 {:?}", times[20], times[38]);
    assert!(times[20] < Duration::from_millis(50), "{times:?}");
    sandboxes.close().await;
}
