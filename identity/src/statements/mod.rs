//! What the ledger says, kept here so that it need not be asked, and need not be there.
//!
//! ```text
//!   who is account 7? ─▶ book: holds? ── yes ─▶ answer
//!                                     └─ no ──▶ ledger: statement ─▶ open: signed? ─▶ book, disk
//!   every 20 s ─▶ ledger: what changed since? ─▶ book: renew all, doubt what is named, ask for it
//! ```
//!
//! - Everything is signed with the ledger's key, which is configured, or taken at the first contact
//!   and kept from then on. What is forged, foreign, expired or older than what is known is refused.
//! - While the ledger is away, what is held counts until it expires. What changed and could not be
//!   asked for counts no more: a revoked key is refused from the moment that the change is known.
//! - That an account is *not* there is never remembered: whoever registers can deploy at once.

mod book;
mod disk;
mod open;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rhizome_model::statement::{
    Account, Changes, Coordinator, Farm, Node, Says, Signed, Statement, Subject,
};
use rhizome_model::{AccountId, Code, Failure, FarmId, KeyId, NodeId};
use rhizome_service::{clock, random};
use tokio_util::sync::CancellationToken;

use crate::{Accounts, LedgerClient};
use book::{Book, Found};
use disk::Disk;

pub use open::{open_signed, sign_statement};

/// How often the ledger is asked for changes: a revocation arrives within this and the time of two
/// requests.
const POLL: Duration = Duration::from_secs(20);
/// Changes are asked for in so many steps at a time; the rest comes with the next poll.
const MAX_STEPS: usize = 100;

/// Where statements are kept, and whose they are.
#[derive(Debug, Clone)]
pub struct StatementsConfig {
    pub folder: PathBuf,
    pub network: String,
    /// The ledger's key. Without it, the one that it shows at the first contact counts for ever.
    pub ledger_key: Option<KeyId>,
}

/// The statements of one process.
pub struct Statements {
    ledger: LedgerClient,
    network: String,
    disk: Disk,
    inner: Mutex<Inner>,
    /// One at a time asks for changes: each page follows from the last.
    polling: tokio::sync::Mutex<()>,
}

struct Inner {
    book: Book,
    key: Option<KeyId>,
}

impl Statements {
    /// Reads what was kept. The ledger need not be there.
    pub fn load(ledger: LedgerClient, config: StatementsConfig) -> Result<Self, Failure> {
        let disk = Disk::open(config.folder)?;
        let key = match config.ledger_key {
            Some(key) => Some(key),
            None => disk.pinned()?,
        };
        let book = match key {
            Some(key) => disk.load(&key, &config.network),
            None => Book::default(),
        };
        tracing::debug!(held = book.len(), "statements of the ledger were read");
        Ok(Self {
            ledger,
            network: config.network,
            disk,
            inner: Mutex::new(Inner { book, key }),
            polling: tokio::sync::Mutex::default(),
        })
    }

    pub async fn farm(&self, id: FarmId) -> Result<Option<Farm>, Failure> {
        match self.find(Subject::Farm(id)).await? {
            Some(Says::Farm(farm)) => Ok(Some(farm)),
            _ => Ok(None),
        }
    }

    pub async fn node(&self, id: NodeId) -> Result<Option<Node>, Failure> {
        match self.find(Subject::Node(id)).await? {
            Some(Says::Node(node)) => Ok(Some(node)),
            _ => Ok(None),
        }
    }

    pub async fn coordinator(&self, key: KeyId) -> Result<Option<Coordinator>, Failure> {
        match self.find(Subject::Coordinator(key)).await? {
            Some(Says::Coordinator(coordinator)) => Ok(Some(coordinator)),
            _ => Ok(None),
        }
    }

    /// Keeps what is held up to date until told to stop; `wanted` is held before anybody asks.
    pub async fn run(&self, wanted: &[Subject], shutdown: CancellationToken) {
        let mut away = false;
        loop {
            match self.refresh(wanted).await {
                Ok(()) => away = false,
                // Said once per absence.
                Err(failure) if !away || failure.code != Code::Unavailable => {
                    away = failure.code == Code::Unavailable;
                    tracing::warn!(error = %failure, code = %failure.code,
                        "the ledger's changes are not known; what is held counts until it expires");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(POLL.mul_f64(0.75 + 0.25 * random::unit())) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn refresh(&self, wanted: &[Subject]) -> Result<(), Failure> {
        self.poll().await?;
        for subject in wanted {
            self.find(*subject).await?;
        }
        Ok(())
    }

    /// Asks for changes, and for what changed of that which is held.
    pub async fn poll(&self) -> Result<(), Failure> {
        let _turn = self.polling.lock().await;
        let key = self.key().await?;
        for _ in 0..MAX_STEPS {
            let after = self.inner().book.cursor();
            let query = after.map_or_else(String::new, |after| format!("?after={after}"));
            let bytes = self.ledger.signed_bytes(&format!("/v2/statements{query}")).await?;
            let changes: Changes = self.open(&bytes, &key)?;
            let more = changes.more;
            let doubted = self.inner().book.renew(&changes).map_err(refuse)?;
            for subject in &doubted {
                tracing::info!(%subject, "it has changed in the ledger");
            }
            // What is doubted goes from the disk before the page that says so is kept.
            self.disk.forget(&doubted);
            self.disk.keep_head(&changes, &bytes);
            for subject in doubted {
                if let Err(failure) = self.fetch(&subject.to_string()).await {
                    tracing::warn!(%subject, error = %failure, "what changed is not known yet");
                }
            }
            if !more {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn find(&self, subject: Subject) -> Result<Option<Says>, Failure> {
        let held = self.inner().book.find(&subject, clock::now_secs());
        self.settle(held, &subject.to_string()).await
    }

    /// What is held, or what the ledger says now.
    async fn settle(&self, held: Found, path: &str) -> Result<Option<Says>, Failure> {
        let why = match held {
            Found::Holds(says) => return Ok(Some(*says)),
            Found::Nothing => "is not known here",
            Found::Expired => "was known here, but what the ledger said has expired",
            Found::Doubted => "has changed in the ledger",
        };
        match self.fetch(path).await {
            Ok(says) => Ok(Some(says)),
            Err(failure) if failure.code == Code::NotFound => Ok(None),
            Err(failure) if failure.code == Code::Unavailable => {
                let message = format!("{path} {why}, and the ledger does not answer: {failure}");
                Err(Failure::new(Code::Unavailable, message))
            }
            Err(failure) => Err(failure),
        }
    }

    async fn fetch(&self, path: &str) -> Result<Says, Failure> {
        // While it was on its way the cursor may have gone past it: then once more.
        match self.fetch_once(path).await? {
            Ok(says) => Ok(says),
            Err(_) => self.fetch_once(path).await?.map_err(refuse),
        }
    }

    async fn fetch_once(&self, path: &str) -> Result<Result<Says, book::Old>, Failure> {
        let key = self.key().await?;
        let bytes = self.ledger.signed_bytes(&format!("/v2/statements/{path}")).await?;
        let statement: Statement = self.open(&bytes, &key)?;
        let subject = statement.says.subject();
        let asked = match path.strip_prefix("key/") {
            Some(key) => names_key(&statement.says, key),
            None => subject.to_string() == path,
        };
        if !asked {
            let message = format!("the ledger was asked about {path} and spoke of {subject}");
            return Err(Failure::new(Code::BadStatement, message));
        }
        let says = statement.says.clone();
        let taken = self.inner().book.take(statement);
        Ok(taken.map(|evicted| {
            self.disk.keep(&subject, &bytes);
            self.disk.forget(evicted.as_slice());
            says
        }))
    }

    fn open<T: Signed>(&self, bytes: &[u8], key: &KeyId) -> Result<T, Failure> {
        open_signed(bytes, key, &self.network, clock::now_secs())
    }

    /// The key that the ledger signs with.
    async fn key(&self) -> Result<KeyId, Failure> {
        if let Some(key) = self.inner().key {
            return Ok(key);
        }
        let about = self.ledger.about().await?;
        if about.network != self.network {
            let message = format!(
                "the ledger is of the network {:?}; this is {:?}",
                about.network, self.network
            );
            return Err(Failure::new(Code::BadStatement, message));
        }
        let mut inner = self.inner();
        // Somebody else may have been first.
        if let Some(key) = inner.key {
            return Ok(key);
        }
        self.disk.pin(&about.key)?;
        inner.key = Some(about.key);
        tracing::info!(key = %about.key, "the ledger's key is trusted from now on; with --ledger-key it is known beforehand");
        Ok(about.key)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change of the book is complete before anything in it can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn names_key(says: &Says, key: &str) -> bool {
    match says {
        Says::Account(account) => account.keys.iter().any(|k| k.key.to_string() == key),
        Says::Farm(_) | Says::Node(_) | Says::Coordinator(_) => false,
    }
}

fn refuse(error: book::Old) -> Failure {
    Failure::new(Code::BadStatement, error.to_string())
}

#[async_trait]
impl Accounts for Statements {
    async fn by_key(&self, key: &KeyId) -> Result<Option<Account>, Failure> {
        let held = {
            let inner = self.inner();
            match inner.book.account_of(key) {
                Some(id) => inner.book.find(&Subject::Account(id), clock::now_secs()),
                None => Found::Nothing,
            }
        };
        match self.settle(held, &format!("key/{key}")).await? {
            Some(Says::Account(account)) => Ok(Some(account)),
            _ => Ok(None),
        }
    }

    async fn by_id(&self, id: AccountId) -> Result<Option<Account>, Failure> {
        match self.find(Subject::Account(id)).await? {
            Some(Says::Account(account)) => Ok(Some(account)),
            _ => Ok(None),
        }
    }
}
