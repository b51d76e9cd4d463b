//! A change under way: who makes it, and the transaction that it is made in.

use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use rhizome_database::Tx;
use rhizome_identity::http_signature::{SignedRequest, WINDOW_SECS, check};
use rhizome_model::statement::Subject;
use rhizome_model::{AccountId, Code, FarmId, KeyId};
use rhizome_service::clock;
use serde::Serialize;

use super::{Refusal, Reply};
use crate::App;
use crate::db::{self, audit};

/// No signed call has a larger body.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// A request whose signature (RFC 9421, our profile) is good and in time, with its body.
pub struct Signed {
    pub request: SignedRequest,
    pub body: Bytes,
}

impl FromRequest<Arc<App>> for Signed {
    type Rejection = Refusal;

    async fn from_request(request: Request<Body>, _: &Arc<App>) -> Result<Self, Refusal> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, MAX_BODY_BYTES).await.map_err(|_| {
            Refusal::new(Code::TooLarge, format!("at most {MAX_BODY_BYTES} bytes are taken here"))
        })?;
        // What a router strips from the path was signed as well.
        let uri = parts.extensions.get::<axum::extract::OriginalUri>();
        let uri = uri.map_or(&parts.uri, |original| &original.0);
        let now = clock::now_secs();
        let request = check(&parts.method, uri.path(), uri.query(), &parts.headers, &body, now)?;
        Ok(Self { request, body })
    }
}

/// One transaction: dropped without [`Change::done`] it has never been.
pub struct Change {
    pub tx: Tx,
    /// Whose key signed the request.
    pub account: AccountId,
    pub key: KeyId,
}

impl Change {
    /// Begins what a signed request asks for: it comes for the first time, and its key is one that
    /// an account has now.
    pub async fn begin(app: &App, signed: &Signed) -> Reply<Self> {
        let SignedRequest { key, created, once } = signed.request;
        let mut tx = app.db.begin().await?;
        let expires = created.saturating_add(WINDOW_SECS);
        if !db::keys::first_time(&mut tx, &once, expires, clock::now_secs()).await? {
            let message = "this request was made before; sign it anew";
            return Err(Refusal::new(Code::Replayed, message));
        }
        let account = match db::keys::holder(&mut tx, &key).await? {
            Some(id) => db::keys::keys_in(&mut tx, id).await?,
            None => None,
        };
        let Some(account) = account else {
            let message = format!("no account has the key {key}; register it first");
            return Err(Refusal::new(Code::UnknownAccount, message));
        };
        if account.main_key().is_none() {
            let message = format!("account {} is revoked: all its keys are", account.id);
            return Err(Refusal::new(Code::RevokedAccount, message));
        }
        if !account.is_active(&key) {
            let message = format!("the key {key} is no key of account {} any more", account.id);
            return Err(Refusal::new(Code::RevokedKey, message));
        }
        Ok(Self { tx, account: account.id, key })
    }

    /// That the caller owns a farm.
    pub async fn owns(&mut self, farm: FarmId) -> Reply<()> {
        let owner = db::access::owner_of(&mut self.tx, farm).await?;
        let owner = owner.ok_or_else(|| Refusal::not_found(format_args!("farm {farm}")))?;
        if owner == self.account {
            return Ok(());
        }
        let message = format!("farm {farm} is account {owner}'s, and you are {}", self.account);
        Err(Refusal::new(Code::Unauthorised, message))
    }

    /// Ends it: it is in the audit log, and what is said about `changed` from now on is newer.
    pub async fn done(
        mut self,
        action: &'static str,
        subject: &Subject,
        detail: &impl Serialize,
        changed: impl IntoIterator<Item = Subject>,
    ) -> Reply<()> {
        db::revisions::touch(&mut self.tx, changed).await?;
        let detail = serde_json::to_string(detail).map_err(db::DbError::corrupt)?;
        let (account, key) = (Some(self.account), Some(self.key));
        let change = audit::Change { account, key, action, subject: *subject, detail };
        audit::note(&mut self.tx, [change]).await?;
        self.tx.commit().await?;
        tracing::info!(account = %self.account, action, %subject, "changed");
        Ok(())
    }
}
