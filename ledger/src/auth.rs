//! `X-Auth: base64("TIMESTAMP:ACCOUNT"):base64(signature)`, the registrar's way to say who calls.
//!
//! The checks, their order and their texts are v4's, with one more: a challenge from the future is
//! refused, since it would be valid until then.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::{AccountId, KeyId};
use rhizome_service::clock;

use crate::App;
use crate::error::{LedgerError, Reply};
use crate::scheme;

/// A challenge is taken this long before and after its time.
const WINDOW_SECS: u64 = 60;

/// The account that made this request.
pub struct Authenticated(AccountId);

impl Authenticated {
    /// That the request is about what belongs to its sender.
    pub fn must_be(&self, owner: AccountId) -> Reply<()> {
        if self.0 == owner { Ok(()) } else { Err(LedgerError::not_owner()) }
    }
}

impl FromRequestParts<Arc<App>> for Authenticated {
    type Rejection = LedgerError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Reply<Self> {
        let claim = Claim::from_request_parts(parts, app).await?;
        claim.verify(&claim.current_key(app).await?)?;
        Ok(Self(claim.account))
    }
}

/// What `X-Auth` claims. Nothing of it is believed before [`Claim::verify`].
pub struct Claim {
    pub account: AccountId,
    challenge: Vec<u8>,
    signature: String,
}

impl FromRequestParts<Arc<App>> for Claim {
    type Rejection = LedgerError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Reply<Self> {
        let header = parts.headers.get("x-auth").map(|h| h.to_str().unwrap_or_default());
        let header = header
            .filter(|h| !h.is_empty())
            .ok_or_else(|| LedgerError::unauthenticated("Authorization header required"))?;
        Self::parse(header, clock::now_secs())
    }
}

impl Claim {
    fn parse(header: &str, now: i64) -> Reply<Self> {
        let bad = LedgerError::bad_request;
        let (challenge, signature) = header
            .split_once(':')
            .filter(|(_, signature)| !signature.contains(':'))
            .ok_or_else(|| bad("Invalid header format. Use 'Challenge:Signature'"))?;
        let challenge =
            STANDARD.decode(challenge).map_err(|_| bad("Invalid challenge encoding"))?;
        let text = String::from_utf8_lossy(&challenge);
        let (timestamp, account) = text
            .split_once(':')
            .filter(|(_, account)| !account.contains(':'))
            .ok_or_else(|| bad("Invalid challenge format"))?;
        let timestamp: i64 = timestamp.parse().map_err(|_| bad("Invalid timestamp"))?;
        if timestamp.abs_diff(now) > WINDOW_SECS {
            let text =
                if timestamp < now { "Expired challenge" } else { "Challenge from the future" };
            return Err(LedgerError::unauthenticated(text).with_server_time(now));
        }
        let account: u64 = account.parse().map_err(|_| bad("Invalid twin ID format"))?;
        Ok(Self { account: AccountId(account), challenge, signature: signature.to_owned() })
    }

    /// The key of the account that it names.
    pub async fn current_key(&self, app: &App) -> Reply<KeyId> {
        let key = app
            .db
            .main_key(self.account)
            .await
            .map_err(|e| LedgerError::database("Database error", &e))?
            .ok_or_else(|| LedgerError::not_found("Account not found"))?;
        key.ok_or_else(|| LedgerError::unauthenticated("Account is revoked: all its keys are"))
    }

    pub fn verify(&self, key: &KeyId) -> Reply<()> {
        let signature = STANDARD
            .decode(&self.signature)
            .map_err(|_| LedgerError::bad_request("Invalid signature encoding"))?;
        if scheme::verify(key, &self.challenge, &signature) {
            Ok(())
        } else {
            Err(LedgerError::signature_failed())
        }
    }

    /// That the request is about what belongs to its sender, once it is verified.
    pub fn must_be(&self, owner: AccountId) -> Reply<()> {
        Authenticated(self.account).must_be(owner)
    }
}
