//! That a sandbox is quick; generous bounds, the numbers are printed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rhizome_engine::Sandboxes;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, sandboxes, script};

const SIDE_BY_SIDE: u32 = 16;
const EACH: u32 = 25;

/// Milliseconds of each, from the quickest on.
async fn times(sandboxes: &Sandboxes, count: u32, pause: Duration) -> Vec<f64> {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_quick() {
    let sandboxes = Arc::new(sandboxes());
    let begin = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..SIDE_BY_SIDE {
        let sandboxes = Arc::clone(&sandboxes);
        all.spawn(async move { times(&sandboxes, EACH, Duration::ZERO).await });
    }
    all.join_all().await;
    let each = begin.elapsed().as_secs_f64() * 1e3 / f64::from(SIDE_BY_SIDE * EACH);
    println!("{SIDE_BY_SIDE} side by side: {each:.2} ms each");
    assert!(each < 50.0, "{each}");
    Arc::into_inner(sandboxes).unwrap().close().await;
}
