//! The coordinator: takes signed envelopes, brings the same bytes to each node, and follows every
//! task to its end.
//!
//! ```text
//!   envelope ─▶ verify ─▶ store (durable) ─▶ 202
//!                           │ wake
//!                           ▼
//!        dispatcher, one per (deployment, node) ──same bytes──▶ supervisor
//!                                                                  │ events
//!        store ◀── mirror ◀── follower, one per node ◀─────────────┘
//!          └─▶ views, events (SSE): readers see only what is stored
//! ```
//!
//! - Nothing is answered before it is on disk; nothing that is on disk is forgotten: dispatchers
//!   and followers are rebuilt from the store.
//! - A task's phase moves by what its node says, through [`rhizome_model::Phase::step`].
//! - The node verifies all by itself: coord can delay a deployment, never change one.
//!
//! Must not know: Redis, the script, how anything is made on a node, the ledger's tables.

mod accounts;
mod config;
mod dispatch;
mod http;
mod nodes;
mod rules;
mod store;

use std::sync::Arc;
use std::time::Duration;

use rhizome_identity::{LedgerClient, Statements, StatementsConfig};
use rhizome_model::{Code, Failure};
use rhizome_service::{Shutdown, clock};
use tokio::net::TcpListener;

pub use config::CoordConfig;

use accounts::KnownAccounts;
use dispatch::Dispatcher;
use nodes::Nodes;
use store::Store;

/// What is under way when we are told to stop is given this long.
const STOP_WITHIN: Duration = Duration::from_secs(10);
const TIDY_EVERY: Duration = Duration::from_secs(3600);
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// Serves until told to stop. The ledger and the nodes may be away: what needs them says so.
pub async fn run(
    config: CoordConfig,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    rhizome_service::metrics::init();
    config.check()?;
    let store = Arc::new(Store::open(&config.database).await.map_err(|e| {
        let failure = Failure::from(e);
        let path = config.database.display();
        Failure::new(Code::StateNotWritable, format!("cannot open {path}: {failure}"))
    })?);
    let ledger = LedgerClient::new(&config.ledger, None)?;
    let statements = Arc::new(Statements::load(
        ledger.clone(),
        StatementsConfig {
            folder: config.statements,
            network: config.network.clone(),
            ledger_key: config.ledger_key,
        },
    )?);
    let known = Arc::new(KnownAccounts::new(statements.clone(), store.clone()));
    let nodes = Arc::new(Nodes::new(ledger, config.key));
    // Tasks of our own, so that ours alone end with us, also when nobody waits for us any more.
    let own = Shutdown { token: shutdown.token.child_token(), ..Shutdown::default() };
    let _stop_if_dropped = own.token.clone().drop_guard();
    let dispatcher = Dispatcher::start(store.clone(), nodes.clone(), own.clone());
    own.tracker.spawn(own.token.clone().run_until_cancelled_owned(keep_house(store.clone())));

    own.tracker.spawn({
        let (statements, token) = (statements.clone(), own.token.clone());
        async move { statements.run(&[], token).await }
    });

    let app =
        http::App::new(store, nodes, dispatcher, statements, known, config.network, own.clone());
    let (router, api) = http::routes(app);
    let health = rhizome_service::http::always_healthy();
    let served = rhizome_service::serve(listener, router, api, health, own.token.clone()).await;
    if !own.finish(STOP_WITHIN).await {
        tracing::warn!("some work did not stop in time; it goes on after the next start");
    }
    served.map_err(|e| Failure::new(Code::Internal, format!("coord cannot serve: {e}")))
}

async fn keep_house(store: Arc<Store>) {
    let mut tidy = tokio::time::interval(TIDY_EVERY);
    let mut count = tokio::time::interval(COUNT_EVERY);
    loop {
        let done = tokio::select! {
            _ = tidy.tick() => store.tidy(clock::now_ms()).await,
            _ = count.tick() => count_tasks(&store).await,
        };
        if let Err(error) = done {
            tracing::error!(error = %Failure::from(error), "housekeeping failed; it is tried again");
        }
    }
}

async fn count_tasks(store: &Store) -> store::Result<()> {
    let counted = store.tasks_by_phase().await?;
    for phase in rhizome_model::Phase::ALL.map(|p| p.to_string()) {
        let n = counted.iter().find(|(p, _)| *p == phase).map_or(0, |(_, n)| *n);
        metrics::gauge!("rhizome_coord_tasks", "phase" => phase).set(n as f64);
    }
    Ok(())
}
