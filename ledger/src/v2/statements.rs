//! What the ledger says under its own signature.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use rhizome_identity::sign_statement;
use rhizome_model::statement::{Changes, LedgerView, Says, Signed, Statement, Subject};
use rhizome_model::{Failure, KeyId};
use rhizome_service::clock;
use serde::{Deserialize, Serialize};

use super::{Path, Query, Refusal, Reply};
use crate::App;

/// A DSSE envelope with one signature, by the key that `/v2/ledger` names.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "it describes what is written elsewhere")]
pub struct SignedStatement {
    #[schema(rename = "payloadType")]
    payload_type: String,
    /// Base64 of the JSON that was signed.
    payload: String,
    signatures: Vec<StatementSignature>,
}

#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "it describes what is written elsewhere")]
pub struct StatementSignature {
    /// The key, in hexadecimal digits.
    keyid: String,
    /// Base64.
    sig: String,
}

/// Which ledger this is, and the key that it signs with.
#[utoipa::path(get, path = "/ledger", tag = "statements", responses((status = 200, body = LedgerView)))]
pub async fn about(State(app): State<Arc<App>>) -> Reply<Json<LedgerView>> {
    Ok(Json(LedgerView {
        network: app.network.clone(),
        key: app.key.key_id(),
        revision: app.db.revision().await?,
        now: clock::now_secs(),
        lifetime_secs: app.lifetime_secs,
    }))
}

#[derive(Deserialize)]
pub struct After {
    after: Option<u64>,
}

/// Whom something changed about after a revision; without one, only the revision that it is now.
/// What is not named still holds.
#[utoipa::path(get, path = "/statements", tag = "statements",
    params(("after" = Option<u64>, Query, description = "The last revision that is known")),
    responses((status = 200, body = SignedStatement), (status = 400, body = Failure)))]
pub async fn changes(
    State(app): State<Arc<App>>,
    Query(After { after }): Query<After>,
) -> Reply<Response> {
    let after = match after {
        Some(after) => after,
        None => app.db.revision().await?,
    };
    let page = app.db.changes_after(after).await?;
    let now = clock::now_secs();
    app.signed(&Changes {
        network: app.network.clone(),
        after,
        through: page.through,
        more: page.more,
        issued_at: now,
        expires: now.saturating_add(app.lifetime_secs),
        changed: page.changed,
    })
}

/// What is so about somebody: `account/ID`, `key/KEY` (its account), `farm/ID`, `node/ID`,
/// `coordinator/KEY`.
#[utoipa::path(get, path = "/statements/{kind}/{id}", tag = "statements",
    params(("kind" = String, Path), ("id" = String, Path)),
    responses((status = 200, body = SignedStatement), (status = 400, body = Failure), (status = 404, body = Failure)))]
pub async fn one(
    State(app): State<Arc<App>>,
    Path((kind, id)): Path<(String, String)>,
) -> Reply<Response> {
    // Before anything is read: what is read then holds at least up to here.
    let as_of = app.db.revision().await?;
    let subject = match kind.as_str() {
        "key" => app.holder(&id).await?,
        _ => format!("{kind}/{id}").parse().map_err(
            |e: rhizome_model::statement::SubjectError| Refusal::bad_request(e.to_string()),
        )?,
    };
    let revision = app.db.revision_of(&subject).await?;
    let says = app.says(&subject).await?.ok_or_else(|| Refusal::not_found(subject))?;
    let now = clock::now_secs();
    app.signed(&Statement {
        network: app.network.clone(),
        revision,
        as_of: as_of.max(revision),
        issued_at: now,
        expires: now.saturating_add(app.lifetime_secs),
        says,
    })
}

impl App {
    async fn holder(&self, key: &str) -> Reply<Subject> {
        let key: KeyId =
            key.parse().map_err(|e: rhizome_model::IdError| Refusal::bad_request(e.to_string()))?;
        let account = self.db.keyholder(&key).await?;
        let account = account.ok_or_else(|| Refusal::not_found(format_args!("key {key}")))?;
        Ok(Subject::Account(account.id))
    }

    async fn says(&self, subject: &Subject) -> Reply<Option<Says>> {
        Ok(match subject {
            Subject::Account(id) => self.db.account_keys(*id).await?.map(Says::Account),
            Subject::Farm(id) => self.db.farm_access(*id, clock::now_secs()).await?.map(Says::Farm),
            Subject::Node(id) => self.db.node_statement(*id).await?.map(Says::Node),
            Subject::Coordinator(key) => self.db.coordinator(key).await?.map(Says::Coordinator),
        })
    }

    fn signed<T: Signed + Serialize>(&self, says: &T) -> Reply<Response> {
        let envelope = sign_statement(&self.key, says)?;
        Ok(([(header::CONTENT_TYPE, "application/json")], envelope).into_response())
    }
}
