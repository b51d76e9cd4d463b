//! The identity manager of a node: keeps its key, its place in the ledger, and its secrets.
//!
//! ```text
//!   open ─▶ a copy of the identity ─▶ Kept ──────────────────────────────┐
//!        └▶ nowhere a trace ─▶ Candidate, in memory only                 ▼
//!              └─ does the ledger know this machine? ─ no ─▶ Kept ─▶ account ▶ farm ▶ node ▶ uptime
//!                                                   └─ yes ─▶ stop, unless told to be a new node
//!   socket: who, unseal, what accounts use, and sign, verify, encrypt, decrypt for a purpose
//! ```
//!
//! Registering is repeated until it succeeds and made again when a fact changes; a node that was
//! registered before knows its ids at once, also while the ledger is away. The key leaves this
//! process never: others ask on the socket.

mod copies;
mod facts;
mod grants;
mod legacy;
mod record;
mod registrar;
mod socket;
mod spool;
mod store;
mod transfer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rhizome_model::api::{IdentityCopy, NodeIdentity, Registered};
use rhizome_model::registrar::Location;
use rhizome_model::{Backoff, Code, Failure, FarmId, KeyId};
use rhizome_service::random::jittered;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use copies::{Copy, IdentityError};
pub use facts::{Disk, DiskKind, Facts, Overrides};
pub use grants::{Grant, Operation};
pub use store::{Kept, Opened, Places, Sealer, Store};
pub use transfer::{Exported, Lock, MAX_EXPORT_BYTES, Unlock, export, import};

use self::registrar::Registrar;
use self::spool::Spool;
use crate::{LedgerClient, SigningKey};

/// Well below the 40 minutes after which the ledger calls a node offline: one report, even two,
/// may be lost. v4 nodes report every 40 minutes and blink.
pub const UPTIME_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// A ledger that was restarted is found again within seconds; one that is gone is not stormed.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
/// Also where a report is due at once.
const BACKOFF_FLOOR: Duration = Duration::from_millis(100);

/// The farm that a node belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FarmChoice {
    Id(FarmId),
    /// Made by the first node that names it.
    Name(String),
}

#[derive(Debug, Clone)]
pub struct Config {
    /// The folder of the identity's first copy and of the spool.
    pub state: PathBuf,
    /// Mounted file systems that hold a copy each.
    pub state_pools: Vec<PathBuf>,
    pub socket: PathBuf,
    /// One more socket, for users that [`Config::grants`] names: everybody can connect to it.
    pub shared_socket: Option<PathBuf>,
    pub grants: Vec<Grant>,
    /// Such as `http://127.0.0.1:8080`; several with commas between.
    pub ledger: String,
    pub farm: FarmChoice,
    pub supervisor_url: Option<String>,
    pub location: Location,
    pub uptime_interval: Duration,
    /// Files that show, where they exist, that there was an identity.
    pub traces: Vec<PathBuf>,
    /// Where no identity can be used, make a new one, also over a machine that the ledger knows.
    pub new_identity: bool,
}

/// Where the node's facts come from: [`Facts::gather`], mostly with the storage that is set aside.
pub type FactsSource = Arc<dyn Fn() -> Result<Facts, Failure> + Send + Sync>;

/// Whether the identity is one already.
enum Holding {
    Kept(Kept),
    /// Nobody knows this key yet, and it is written nowhere.
    Candidate(Store, SigningKey),
}

pub struct Manager {
    key: SigningKey,
    holding: Holding,
    config: Config,
    facts: FactsSource,
    identity: watch::Sender<NodeIdentity>,
}

impl Manager {
    /// Opens the node's identity; has a new one ready where there never was any. `sealer` is the
    /// machine's TPM, where it has one.
    pub fn open(
        config: Config,
        facts: FactsSource,
        sealer: Option<Arc<dyn Sealer>>,
    ) -> Result<Self, IdentityError> {
        let store = || Store::new(&config.state, &config.state_pools, sealer.clone());
        let opened = match store().open() {
            Err(error) if config.new_identity => {
                tracing::warn!(%error, "a new identity is made, as we were told to");
                let store = store();
                store.set_aside()?;
                Opened::Never(store)
            }
            opened => opened?,
        };
        if let (Opened::Never(_), false) = (&opened, config.new_identity)
            && let Some(trace) = config.traces.iter().find(|trace| trace.exists())
        {
            let why = format!("it is gone, but {} shows that there was one", trace.display());
            return Err(IdentityError::Broken { path: config.state.clone(), why });
        }
        let holding = match opened {
            Opened::Known(kept) => Holding::Kept(kept),
            Opened::Never(store) => {
                let key = SigningKey::generate().map_err(|e| IdentityError::Key(e.to_string()))?;
                Holding::Candidate(store, key)
            }
        };
        let (key, registered) = match &holding {
            Holding::Kept(kept) => (kept.key().clone(), kept.registered()),
            Holding::Candidate(_, key) => (key.clone(), None),
        };
        let identity = NodeIdentity {
            key: key.key_id(),
            address: key.mycelium_address(),
            registered,
            problem: None,
            sealed: matches!(&holding, Holding::Kept(kept) if kept.is_sealed()),
            copies: Vec::new(),
            waiting_reports: 0,
        };
        Ok(Self { key, holding, config, facts, identity: watch::Sender::new(identity) })
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

    /// Registers, reports and serves the sockets until the token is cancelled.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Failure> {
        let Self { key, mut holding, config, facts, identity } = self;
        let ledger = LedgerClient::new(&config.ledger, Some(key.clone()))?;
        let spool = Spool::open(&config.state, facts::boot_id()?);
        let service = socket::Service::new(socket::Inner {
            key,
            identity: identity.subscribe(),
            ledger: ledger.clone(),
            facts: facts.clone(),
            grants: config.grants.clone(),
        });
        let own = service.serve(&config.socket, 0o600, shutdown.clone());
        let shared = async {
            match &config.shared_socket {
                Some(path) => service.serve(path, 0o666, shutdown.clone()).await,
                None => Ok(()),
            }
        };
        let mut keeper = Keeper {
            registrar: Registrar::new(ledger, config.clone(), facts, spool),
            new_identity: config.new_identity,
            identity: &identity,
        };
        let registering = keeper.keep_registered(&mut holding, &shutdown);
        tokio::try_join!(own, shared, registering).map(|_| ())
    }
}

/// Keeps the ledger up to date, and the identity in its places.
struct Keeper<'a> {
    registrar: Registrar,
    new_identity: bool,
    identity: &'a watch::Sender<NodeIdentity>,
}

impl Keeper<'_> {
    /// `Err` only where going on would do harm.
    async fn keep_registered(
        &mut self,
        holding: &mut Holding,
        shutdown: &CancellationToken,
    ) -> Result<(), Failure> {
        let mut attempt = 0;
        loop {
            let step = tokio::select! {
                step = self.step(holding) => step,
                () = shutdown.cancelled() => return Ok(()),
            };
            let pause = match step {
                Ok(due) => {
                    attempt = 0;
                    due
                }
                Err(failure) if failure.code == Code::KnownMachine => return Err(failure),
                Err(failure) => {
                    attempt += 1;
                    self.failed(failure, attempt)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    async fn step(&mut self, holding: &mut Holding) -> Result<Duration, Failure> {
        if let Holding::Candidate(_, key) = &*holding {
            if !self.new_identity
                && let Some((serial, node)) = self.registrar.known_as_other(&key.key_id()).await?
            {
                return Err(IdentityError::KnownMachine { serial, node }.into());
            }
            self.settle(holding)?;
        }
        let Holding::Kept(kept) = holding else {
            return Err(Failure::new(Code::Internal, "the identity was not settled"));
        };
        self.look_at(kept);
        self.registrar.report()?;
        let (registered, due) = self.registrar.step().await?;
        self.remember(kept, registered);
        Ok(due)
    }

    /// The candidate becomes the node's identity.
    fn settle(&mut self, holding: &mut Holding) -> Result<(), Failure> {
        let Holding::Candidate(store, key) = &*holding else { return Ok(()) };
        let serial = self.registrar.serial_number()?;
        let kept = store.clone().create(key.clone(), &serial, None)?;
        tracing::info!(key = %kept.key_id(), sealed = kept.is_sealed(), "this node has an identity from now on");
        let sealed = kept.is_sealed();
        self.identity.send_modify(|identity| identity.sealed = sealed);
        *holding = Holding::Kept(kept);
        Ok(())
    }

    /// Heals the copies, and says how they are.
    fn look_at(&self, kept: &Kept) {
        let copies: Vec<_> = kept
            .heal()
            .into_iter()
            .map(|(path, copy)| IdentityCopy {
                path: path.display().to_string(),
                problem: match copy {
                    Copy::Valid(record) if record.key == kept.key_id() => None,
                    Copy::Valid(record) => Some(format!("it is of the key {}", record.key)),
                    Copy::Absent => Some("it is missing".into()),
                    Copy::Away(why) | Copy::Broken(why) => Some(why),
                },
            })
            .collect();
        self.identity.send_if_modified(|identity| {
            let changed = identity.copies != copies;
            identity.copies = copies;
            changed
        });
    }

    fn failed(&self, failure: Failure, attempt: u32) -> Duration {
        let pause = jittered(BACKOFF, attempt).min(self.registrar.due().max(BACKOFF_FLOOR));
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
        let waiting = self.registrar.waiting();
        self.identity.send_modify(|identity| {
            identity.problem = Some(problem);
            identity.waiting_reports = waiting;
        });
        pause
    }

    fn remember(&self, kept: &mut Kept, registered: Registered) {
        let before = kept.registered();
        if before != Some(registered) {
            if let Some(before) = before.filter(|b| b.node != registered.node) {
                tracing::error!(node = %registered.node, before = %before.node,
                    "the ledger gave this node another id; did it lose its data?");
            }
            if let Err(error) = kept.save(registered) {
                // The ledger still knows; only a start without it would not.
                tracing::error!(%error, "the registration could not be written down");
            }
        }
        self.identity.send_if_modified(|identity| {
            let before = identity.clone();
            identity.registered = Some(registered);
            identity.problem = None;
            identity.waiting_reports = self.registrar.waiting();
            *identity != before
        });
    }
}
