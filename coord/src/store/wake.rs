//! Waking those who follow a deployment. What happened they read from the store.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rhizome_model::DeploymentId;
use tokio::sync::watch;

/// Entries that nobody follows any more are cleared away from this many on.
const SWEEP_FROM: usize = 256;

#[derive(Default)]
pub struct Waker {
    followed: Mutex<HashMap<DeploymentId, watch::Sender<()>>>,
}

impl Waker {
    pub fn follow(&self, deployment: &DeploymentId) -> watch::Receiver<()> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.len() >= SWEEP_FROM {
            followed.retain(|_, sender| !sender.is_closed());
        }
        followed.entry(deployment.clone()).or_insert_with(|| watch::channel(()).0).subscribe()
    }

    pub fn wake(&self, deployment: &DeploymentId) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followed.get(deployment) {
            sender.send_replace(());
        }
    }
}
