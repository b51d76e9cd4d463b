//! The supervisor of one node: it trusts nobody on the way.
//!
//! ```text
//!   envelope ─▶ intake: verify ▶ place ▶ plan in the sandbox ▶ reserve and enqueue, at once
//!   pools:   as many runners as operators want; a dead one's processes are ended, then its jobs go back
//!   reconciler: what is desired is ensured again, what nobody knows is removed, for ever
//!   api:     facts, capacity, tasks, events, queues, jobs, pools; logs and exec by way of jobs
//! ```
//!
//! It has no privileges and makes nothing itself: everything that it wants done is a job.

mod api;
mod audit;
mod caller;
mod compare;
mod fence;
mod grants;
mod intake;
mod joined;
mod keeper;
mod operation;
mod pools;
mod rates;
mod reconcile;
mod view;

use std::path::PathBuf;
use std::sync::Arc;

use rhizome_engine::{SandboxOptions, Sandboxes};
use rhizome_identity::{LedgerClient, Statements};
use rhizome_model::statement::Subject;
use rhizome_model::{Failure, KeyId, Limits, NodeFacts};
use rhizome_queue::{MaintainOptions, Queue, QueueConfig};
use rhizome_service::{Client, Shutdown};
use tokio::net::TcpListener;

pub use pools::Pool;

use audit::Audit;
use fence::Groups;
use joined::Joined;
use pools::Pools;
use rates::Rates;

pub struct SupervisorConfig {
    pub facts: NodeFacts,
    pub key: KeyId,
    pub network: String,
    pub queue: QueueConfig,
    /// What the ledger says of accounts, of our farm, and of other nodes.
    pub statements: Arc<Statements>,
    /// Where the other nodes of a deployment are looked up.
    pub ledger: LedgerClient,
    /// The keys whose holders may follow all tasks.
    pub coordinators: Vec<KeyId>,
    pub pools: Vec<Pool>,
    /// The folder for the control groups of runners; without it only their process groups end.
    pub groups: Option<PathBuf>,
    /// The socket of the node's identity manager.
    pub identity: PathBuf,
    /// Where runners leave outcomes that the queue cannot take.
    pub spool: PathBuf,
    /// What the node says of its network.
    pub network_file: PathBuf,
    /// What evaluates a script: a program and its arguments.
    pub sandbox: (PathBuf, Vec<String>),
    pub limits: Limits,
    /// The file that names every request, accepted or refused.
    pub audit: PathBuf,
}

/// What all parts share.
struct Supervisor {
    facts: NodeFacts,
    key: KeyId,
    network: String,
    queue: Queue,
    statements: Arc<Statements>,
    ledger: LedgerClient,
    coordinators: Vec<KeyId>,
    sandboxes: Sandboxes,
    limits: Limits,
    audit: Audit,
    pools: Pools,
    joined: Joined,
    /// The identity manager: it has the node's key, and speaks with the ledger.
    manager: Client,
    rates: Rates,
    callers: rhizome_identity::http_signature::Verifier,
    /// Streams end when the supervisor does.
    stop: tokio_util::sync::CancellationToken,
}

/// Serves the node until told to stop.
pub async fn run(
    config: SupervisorConfig,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let queue = Queue::connect(&config.queue).await?;
    let (program, args) = config.sandbox;
    let options = SandboxOptions { program, args, uid_gid: None };
    let groups = Groups::open(config.groups);
    let pools = Pools::start(config.pools, queue.clone(), groups, config.spool, &shutdown);
    let supervisor = Arc::new(Supervisor {
        manager: Client::unix("the identity manager", config.identity)?,
        rates: Rates::default(),
        facts: config.facts,
        key: config.key,
        network: config.network,
        queue: queue.clone(),
        statements: config.statements,
        ledger: config.ledger,
        coordinators: config.coordinators,
        sandboxes: Sandboxes::new(options),
        limits: config.limits,
        audit: Audit::open(&config.audit)?,
        pools: pools.clone(),
        joined: Joined::new(config.network_file),
        callers: rhizome_identity::http_signature::Verifier::new(),
        stop: shutdown.token.clone(),
    });
    let token = shutdown.token.clone();
    shutdown.tracker.spawn({
        let (queue, token) = (queue.clone(), token.clone());
        let options = MaintainOptions { fence: Some(Arc::new(pools)), ..Default::default() };
        async move { queue.maintain_with(options, token).await }
    });
    shutdown.tracker.spawn({
        let (supervisor, token) = (supervisor.clone(), token.clone());
        async move { supervisor.watch_queues(token).await }
    });
    shutdown.tracker.spawn({
        let (supervisor, token) = (supervisor.clone(), token.clone());
        async move { supervisor.watch_allowances(token).await }
    });
    shutdown.tracker.spawn(reconcile::run(queue, token.clone()));
    shutdown.tracker.spawn({
        let (statements, token) = (supervisor.statements.clone(), token.clone());
        let farm = Subject::Farm(supervisor.facts.farm);
        async move { statements.run(&[farm], token).await }
    });

    let (router, openapi) = api::routes(supervisor.clone());
    let health: rhizome_service::Health = {
        let supervisor = supervisor.clone();
        Arc::new(move || supervisor.pools.health().and_then(|()| supervisor.joined.health()))
    };
    rhizome_service::serve(listener, router, openapi, health, token)
        .await
        .map_err(|e| Failure::new(rhizome_model::Code::Internal, format!("cannot serve: {e}")))
}
