//! The nodes: who they are (by the ledger), where their supervisors are, how they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use rhizome_identity::{LedgerClient, LedgerNode, SigningKey, http_signature, mycelium_address};
use rhizome_model::api::{NodeStatus, NodeView};
use rhizome_model::{Code, Failure, NodeId};
use rhizome_service::Client;

/// What the ledger said is used this long without asking again.
const FRESH: Duration = Duration::from_secs(60);
/// Nodes asked at a time for how they are, and how long each may take.
const ASKED_AT_ONCE: usize = 64;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// One answer about all nodes serves everybody who asks within this time.
const VIEWS_FRESH: Duration = Duration::from_secs(1);

/// How to talk to one node's supervisor.
pub struct Supervisor {
    url: String,
    /// As coord.
    pub ours: Client,
    /// Unsigned, or with the signature of whoever asks.
    pub plain: Client,
}

#[derive(Clone)]
struct Known {
    node: LedgerNode,
    /// None once there is doubt.
    at: Option<Instant>,
}

pub struct Nodes {
    ledger: LedgerClient,
    key: SigningKey,
    known: Mutex<HashMap<NodeId, Known>>,
    supervisors: Mutex<HashMap<NodeId, Arc<Supervisor>>>,
    views: tokio::sync::Mutex<Option<(Instant, Vec<NodeView>)>>,
}

impl Nodes {
    pub fn new(ledger: LedgerClient, key: SigningKey) -> Self {
        Self {
            ledger,
            key,
            known: Mutex::default(),
            supervisors: Mutex::default(),
            views: tokio::sync::Mutex::default(),
        }
    }

    /// The node as the ledger knows it; while the ledger is away, as it knew it.
    pub async fn find(&self, id: NodeId) -> Result<Option<LedgerNode>, Failure> {
        let known = lock(&self.known).get(&id).cloned();
        if let Some(Known { node, at: Some(at) }) = &known
            && at.elapsed() < FRESH
        {
            return Ok(Some(node.clone()));
        }
        match self.ledger.node(id).await {
            Ok(Some(node)) => {
                self.remember(&node);
                Ok(Some(node))
            }
            Ok(None) => {
                lock(&self.known).remove(&id);
                Ok(None)
            }
            Err(failure) if failure.code == Code::Unavailable => {
                known.map(|k| Some(k.node)).ok_or(failure)
            }
            Err(failure) => Err(failure),
        }
    }

    /// It did not answer: what the ledger says about it now counts next time.
    pub fn doubt(&self, id: NodeId) {
        if let Some(known) = lock(&self.known).get_mut(&id) {
            known.at = None;
        }
    }

    pub async fn supervisor(&self, id: NodeId) -> Result<Arc<Supervisor>, Failure> {
        let Some(node) = self.find(id).await? else {
            return Err(Failure::new(Code::Unavailable, format!("the ledger has no node {id}")));
        };
        self.supervisor_of(&node)
    }

    fn supervisor_of(&self, node: &LedgerNode) -> Result<Arc<Supervisor>, Failure> {
        let Some(url) = &node.supervisor_url else {
            let message = format!("node {} has not told the ledger where it serves", node.id);
            return Err(Failure::new(Code::Unavailable, message));
        };
        let mut supervisors = lock(&self.supervisors);
        if let Some(known) = supervisors.get(&node.id).filter(|s| s.url == *url) {
            return Ok(known.clone());
        }
        let plain = Client::new("the supervisor", url)?;
        let ours = plain.clone().signed(http_signature::signer(self.key.clone()));
        let made = Arc::new(Supervisor { url: url.clone(), ours, plain });
        supervisors.insert(node.id, made.clone());
        Ok(made)
    }

    /// All nodes of the ledger and how each of them is.
    pub async fn views(&self) -> Result<Vec<NodeView>, Failure> {
        // The lock is held while asking: who comes meanwhile gets the same answer.
        let mut views = self.views.lock().await;
        if let Some((at, known)) = views.as_ref()
            && at.elapsed() < VIEWS_FRESH
        {
            return Ok(known.clone());
        }
        let nodes = match self.ledger.nodes().await {
            Ok(nodes) => {
                nodes.iter().for_each(|n| self.remember(n));
                nodes
            }
            Err(failure) if failure.code == Code::Unavailable => {
                let known: Vec<_> = lock(&self.known).values().map(|k| k.node.clone()).collect();
                if known.is_empty() {
                    return Err(failure);
                }
                known
            }
            Err(failure) => return Err(failure),
        };
        let mut asked: Vec<_> = stream::iter(nodes)
            .map(|node| async move { self.view(&node).await })
            .buffer_unordered(ASKED_AT_ONCE)
            .collect()
            .await;
        asked.sort_by_key(|n| n.id);
        *views = Some((Instant::now(), asked.clone()));
        Ok(asked)
    }

    /// A node and how it is.
    pub async fn view(&self, node: &LedgerNode) -> NodeView {
        let address = mycelium_address(&node.key);
        let status = self.status_of(node).await;
        let offline = (!node.online).then(|| "it has not reported its uptime lately".to_owned());
        let unusable = address.is_none().then(|| "its key is not usable".to_owned());
        NodeView {
            id: node.id,
            farm: node.farm,
            key: node.key,
            address: address.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED),
            online: node.online,
            reachable: status.is_ok(),
            capacity: status.as_ref().ok().map(|s| s.usage),
            problem: status.err().map(|f| f.message).or(unusable).or(offline),
        }
    }

    /// A node as it sees itself, if it is the one that the ledger means.
    async fn status_of(&self, node: &LedgerNode) -> Result<NodeStatus, Failure> {
        let supervisor = self.supervisor_of(node)?;
        let asked = supervisor.ours.get::<NodeStatus>("/v1/node");
        let status = tokio::time::timeout(ANSWER_WITHIN, asked).await.unwrap_or_else(|_| {
            let message =
                format!("its supervisor did not answer within {} s", ANSWER_WITHIN.as_secs());
            Err(Failure::new(Code::Unavailable, message))
        })?;
        if (status.facts.id, status.key) == (node.id, node.key) {
            Ok(status)
        } else {
            let message = format!(
                "{} answers as node {} with the key {}",
                supervisor.url, status.facts.id, status.key
            );
            Err(Failure::new(Code::Unavailable, message))
        }
    }

    fn remember(&self, node: &LedgerNode) {
        let known = Known { node: node.clone(), at: Some(Instant::now()) };
        lock(&self.known).insert(node.id, known);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change of these maps is one insertion or removal: nothing can be half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
