//! A ledger that remembers accounts and nodes, on the registrar's routes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, Query, State};
use axum::routing::get;
use axum::{Json, Router};
use rhizome_identity::SigningKey;
use rhizome_model::registrar::{Account, Location, Node, Resources, base64_key};
use rhizome_model::{AccountId, FarmId, KeyId, NodeId};
use rhizome_service::{ApiError, ApiResult};
use serde::Deserialize;

use super::Place;

#[derive(Default)]
struct Books {
    accounts: BTreeMap<AccountId, KeyId>,
    nodes: BTreeMap<NodeId, Node>,
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
                .route("/v1/accounts", get(account))
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

    pub fn change_node(&self, id: u64, change: impl FnOnce(&mut Node)) {
        change(self.books.lock().unwrap().nodes.get_mut(&NodeId(id)).unwrap());
    }
}

#[derive(Deserialize)]
struct Which {
    twin_id: Option<AccountId>,
    public_key: Option<String>,
}

async fn account(
    State(books): State<Shared>,
    Query(which): Query<Which>,
) -> ApiResult<Json<Account>> {
    let books = books.lock().unwrap();
    let key = which.public_key.and_then(|k| base64_key::decode(&k));
    let found = books
        .accounts
        .iter()
        .find(|(id, k)| Some(**id) == which.twin_id || Some(**k) == key)
        .ok_or_else(|| ApiError::not_found("account"))?;
    Ok(Json(Account {
        twin_id: *found.0,
        relays: None,
        rmb_enc_key: String::new(),
        created_at: String::new(),
        updated_at: String::new(),
        public_key: *found.1,
    }))
}

async fn nodes(State(books): State<Shared>) -> Json<Vec<Node>> {
    Json(books.lock().unwrap().nodes.values().cloned().collect())
}

async fn node(State(books): State<Shared>, Path(id): Path<NodeId>) -> ApiResult<Json<Node>> {
    let node = books.lock().unwrap().nodes.get(&id).cloned();
    node.map(Json).ok_or_else(|| ApiError::not_found("node"))
}
