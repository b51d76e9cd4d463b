//! Telling those who follow a deployment what is new.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rhizome_model::DeploymentId;
use tokio::sync::broadcast;

/// Entries that nobody follows any more are cleared away from this many on.
const SWEEP_FROM: usize = 256;
/// Events that wait for a follower; whoever is further behind reads them from the store.
const BEHIND: usize = 32;

/// Told after its commit. Commits may be told in another order than they were made.
#[derive(Debug, Clone)]
pub enum News {
    /// A new event, as JSON.
    Event { number: u64, body: Arc<str> },
    /// There are new events in the store.
    Stored,
}

#[derive(Default)]
pub struct Waker {
    followed: Mutex<HashMap<DeploymentId, broadcast::Sender<News>>>,
}

impl Waker {
    pub fn follow(&self, deployment: &DeploymentId) -> broadcast::Receiver<News> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.len() >= SWEEP_FROM {
            followed.retain(|_, sender| sender.receiver_count() > 0);
        }
        let new = || broadcast::channel(BEHIND).0;
        followed.entry(deployment.clone()).or_insert_with(new).subscribe()
    }

    pub fn tell(&self, deployment: &DeploymentId, news: News) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followed.get(deployment) {
            // Those who followed it may be gone.
            let _ = sender.send(news);
        }
    }
}
