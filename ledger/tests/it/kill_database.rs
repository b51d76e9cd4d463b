//! PostgreSQL is killed under its ledger. SQLite lives in the ledger's process and dies with it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::harness::{Home, Ledger};
use crate::it::kill::{Load, is_up, nodes, nothing_is_lost};

/// The server is killed with all that belongs to it; the ledger goes on by itself when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_database_has_lost_nothing() {
    let mut home = Home::new().await;
    let mut server = home.server.take().unwrap();
    let ledger = Arc::new(Ledger::start_in(home, "127.0.0.1:0".parse().unwrap()).await);
    let nodes = nodes(&ledger).await;
    let seeds = Arc::new(AtomicU64::new(0));
    for _ in 0..2 {
        let load = Load::begin(&ledger, &nodes, &seeds).await;
        server.kill().unwrap();
        load.stop();
        server.start_again().await.unwrap();
        let written = load.written().await;
        is_up(&ledger).await;
        nothing_is_lost(&ledger, &written).await;
    }
    drop(server);
}
