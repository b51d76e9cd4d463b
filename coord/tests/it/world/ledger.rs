//! A ledger that remembers accounts and nodes, and signs statements about them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use rhizome_identity::{SigningKey, sign_statement};
use rhizome_model::registrar::{Location, Node, Resources};
use rhizome_model::statement::{Account, Changes, Farm, FarmAccess, LedgerView, Says, Statement};
use rhizome_model::{AccountId, FarmId, KeyId, NodeId};
use rhizome_service::{ApiError, ApiResult, clock};

use super::Place;

/// How long its statements count.
const LIFETIME: i64 = 3600;

#[derive(Default)]
struct Books {
    accounts: BTreeMap<AccountId, KeyId>,
    nodes: BTreeMap<NodeId, Node>,
    unwanted: Vec<NodeId>,
    closed: bool,
}

type Shared = Arc<Mutex<Books>>;

pub struct FakeLedger {
    books: Shared,
    pub place: Place,
}

impl FakeLedger {
    pub fn new() -> Self {
        let books = Shared::default();
        let shared = books.clone();
        let place = Place::new(move |listener| {
            let router = Router::new()
                .route("/v2/ledger", get(about))
                .route("/v2/statements", get(changes))
                .route("/v2/statements/{kind}/{id}", get(statement))
                .route("/v1/nodes", get(nodes))
                .route("/v1/nodes/{id}", get(node))
                .with_state(shared.clone());
            Box::pin(async move { axum::serve(listener, router).await.unwrap() })
        });
        Self { books, place }
    }

    pub fn add_account(&self, id: u64, key: &SigningKey) {
        self.books.lock().unwrap().accounts.insert(AccountId(id), key.key_id());
    }

    pub fn add_node(&self, id: NodeId, key: &SigningKey, supervisor_url: Option<String>) {
        let node = Node {
            node_id: id,
            farm_id: FarmId(1),
            twin_id: AccountId(1000 + id.0),
            location: Location::default(),
            resources: Resources::default(),
            interfaces: Vec::new(),
            secure_boot: false,
            virtualized: false,
            serial_number: "s".into(),
            last_seen: None,
            online: true,
            created_at: String::new(),
            updated_at: String::new(),
            approved: false,
            supervisor_url,
            public_key: key.key_id(),
        };
        self.books.lock().unwrap().nodes.insert(id, node);
    }

    /// Nobody has approved of this node.
    pub fn disapprove(&self, id: u64) {
        self.books.lock().unwrap().unwanted.push(NodeId(id));
    }

    /// Closes the farm to all but account 1.
    pub fn close_farm(&self) {
        self.books.lock().unwrap().closed = true;
    }

    pub fn change_node(&self, id: u64, change: impl FnOnce(&mut Node)) {
        change(self.books.lock().unwrap().nodes.get_mut(&NodeId(id)).unwrap());
    }
}

fn key() -> SigningKey {
    SigningKey::from_seed([201; 32])
}

async fn about() -> Json<LedgerView> {
    let (network, now) = ("dev".into(), clock::now_secs());
    Json(LedgerView { network, key: key().key_id(), revision: 0, now, lifetime_secs: LIFETIME })
}

async fn changes() -> Result<String, ApiError> {
    let now = clock::now_secs();
    let changes = Changes {
        network: "dev".into(),
        after: 0,
        through: 0,
        more: false,
        issued_at: now,
        expires: now + LIFETIME,
        changed: Vec::new(),
    };
    Ok(sign_statement(&key(), &changes)?)
}

async fn statement(
    State(books): State<Shared>,
    Path((kind, id)): Path<(String, String)>,
) -> ApiResult<String> {
    let found = {
        let books = books.lock().unwrap();
        let asked = |(number, key): &(&AccountId, &KeyId)| match kind.as_str() {
            "account" => number.to_string() == id,
            _ => key.to_string() == id,
        };
        books.accounts.iter().find(asked).map(|(id, key)| (*id, *key))
    };
    let now = clock::now_secs();
    let says = match (kind.as_str(), found) {
        ("farm", _) => Says::Farm(Farm {
            id: FarmId(1),
            owner: AccountId(1),
            access: match books.lock().unwrap().closed {
                true => FarmAccess::Closed,
                false => FarmAccess::Open,
            },
            coordinators: Vec::new(),
            grants: Vec::new(),
        }),
        ("node", _) => Says::Node(rhizome_model::statement::Node {
            id: id.parse().unwrap(),
            farm: FarmId(1),
            account: AccountId(1000),
            key: key().key_id(),
            approved: !books.lock().unwrap().unwanted.iter().any(|n| n.to_string() == id),
        }),
        (_, Some((id, key))) => Says::Account(Account::with_key(id, key, now)),
        (_, None) => return Err(ApiError::not_found("account")),
    };
    let (issued_at, expires) = (now, now + LIFETIME);
    let network = "dev".into();
    let statement = Statement { network, revision: 0, as_of: 0, issued_at, expires, says };
    Ok(sign_statement(&key(), &statement)?)
}

async fn nodes(State(books): State<Shared>) -> Json<Vec<Node>> {
    Json(books.lock().unwrap().nodes.values().cloned().collect())
}

async fn node(State(books): State<Shared>, Path(id): Path<NodeId>) -> ApiResult<Json<Node>> {
    let node = books.lock().unwrap().nodes.get(&id).cloned();
    node.map(Json).ok_or_else(|| ApiError::not_found("node"))
}
