//! Stopping: one token, one tracker, a deadline.

use std::io::Read;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells every task of a process to stop, and waits for them.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    pub token: CancellationToken,
    pub tracker: TaskTracker,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops on SIGTERM and SIGINT.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let token = self.token.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        });
        Ok(())
    }

    /// Stops when standard input ends: a parent that holds its other end has died, however it died.
    pub fn on_parents_death(&self) {
        let token = self.token.clone();
        // A thread of its own: a blocked read of standard input cannot be cancelled.
        std::thread::spawn(move || {
            let mut scrap = [0; 64];
            while matches!(std::io::stdin().read(&mut scrap), Ok(n) if n > 0) {}
            token.cancel();
        });
    }

    /// Runs until the process is told to stop.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Tells all tasks to stop and waits for them, at most until the deadline. Says whether all did.
    pub async fn finish(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok()
    }
}
