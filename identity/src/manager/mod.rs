//! The identity manager of a node: keeps its key, its place in the ledger, and its secrets.
//!
//! ```text
//!   open: node.key (made once) ─▶ run: account ▶ farm ▶ node ▶ uptime, for ever
//!                                      └─ socket: POST /v1/unseal, GET /v1/identity
//! ```
//!
//! Registering is repeated until it succeeds and made again when a fact changes; a node that was
//! registered before knows its ids at once, also while the ledger is away. The key leaves this
//! process never: others ask on the socket.

mod facts;
mod registrar;
mod socket;
mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rhizome_model::api::{NodeIdentity, Registered};
use rhizome_model::registrar::Location;
use rhizome_model::{Backoff, Failure, FarmId, KeyId};
use rhizome_service::random::jittered;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use facts::Facts;
pub use store::IdentityError;

use self::registrar::Registrar;
use self::store::Store;
use crate::{LedgerClient, SigningKey};

/// Well below the 40 minutes after which the ledger calls a node offline: one report, even two,
/// may be lost. v4 nodes report every 40 minutes and blink.
pub const UPTIME_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// A ledger that was restarted is found again within seconds; one that is gone is not stormed.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));

/// The farm that a node belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FarmChoice {
    Id(FarmId),
    /// Made by the first node that names it.
    Name(String),
}

#[derive(Debug, Clone)]
pub struct Config {
    /// The folder of the key and of the registration.
    pub state: PathBuf,
    pub socket: PathBuf,
    /// Such as `http://127.0.0.1:8080`.
    pub ledger: String,
    pub farm: FarmChoice,
    pub supervisor_url: Option<String>,
    pub location: Location,
    pub uptime_interval: Duration,
}

/// Where the node's facts come from: [`Facts::gather`], mostly with the storage that is set aside.
pub type FactsSource = Arc<dyn Fn() -> Result<Facts, Failure> + Send + Sync>;

pub struct Manager {
    key: SigningKey,
    store: Store,
    config: Config,
    facts: FactsSource,
    identity: watch::Sender<NodeIdentity>,
}

impl Manager {
    /// Loads the node's key, or makes it where there never was one.
    pub fn open(config: Config, facts: FactsSource) -> Result<Self, IdentityError> {
        let store = Store::new(&config.state);
        let (key, registered) = store.open()?;
        let identity = NodeIdentity {
            key: key.key_id(),
            address: key.mycelium_address(),
            registered,
            problem: None,
        };
        Ok(Self { key, store, config, facts, identity: watch::Sender::new(identity) })
    }

    pub fn key_id(&self) -> KeyId {
        self.key.key_id()
    }

    /// The key itself, for whoever runs in the same process and derives the node's address from it.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// Who the node is, now and whenever it changes.
    pub fn identity(&self) -> watch::Receiver<NodeIdentity> {
        self.identity.subscribe()
    }

    /// Registers, reports and serves the socket until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Failure> {
        let ledger = LedgerClient::new(&self.config.ledger, Some(self.key.clone()))?;
        let registrar = Registrar::new(ledger, self.config.clone(), self.facts.clone());
        let serving = socket::serve(
            &self.config.socket,
            self.key.clone(),
            self.identity.subscribe(),
            shutdown.clone(),
        );
        let registering = async {
            self.keep_registered(registrar, &shutdown).await;
            Ok(())
        };
        tokio::try_join!(serving, registering).map(|_| ())
    }

    async fn keep_registered(&self, mut registrar: Registrar, shutdown: &CancellationToken) {
        let mut attempt = 0;
        loop {
            let step = tokio::select! {
                step = registrar.step() => step,
                () = shutdown.cancelled() => return,
            };
            let pause = match step {
                Ok((registered, due)) => {
                    attempt = 0;
                    self.remember(registered);
                    due
                }
                Err(failure) => {
                    attempt += 1;
                    let pause = jittered(BACKOFF, attempt);
                    let problem = match failure.detail {
                        Some(detail) => format!("{}: {detail}", failure.message),
                        None => failure.message,
                    };
                    tracing::warn!(
                        attempt,
                        retry_in_ms = pause.as_millis() as u64,
                        error = problem,
                        "this node could not bring the ledger up to date"
                    );
                    self.identity.send_modify(|identity| identity.problem = Some(problem));
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn remember(&self, registered: Registered) {
        let before = self.identity.borrow().registered;
        if before != Some(registered) {
            if let Some(before) = before.filter(|b| b.node != registered.node) {
                tracing::error!(node = %registered.node, before = %before.node,
                    "the ledger gave this node another id; did it lose its data?");
            }
            if let Err(error) = self.store.save(self.key.key_id(), registered) {
                // The ledger still knows; only a start without it would not.
                tracing::error!(%error, "the registration could not be written down");
            }
        }
        self.identity.send_if_modified(|identity| {
            let changed = identity.registered != Some(registered) || identity.problem.is_some();
            identity.registered = Some(registered);
            identity.problem = None;
            changed
        });
    }
}
