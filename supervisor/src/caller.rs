//! Who calls: told by the request's own signature (RFC 9421), wherever it came from.

use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use rhizome_identity::active_account;
use rhizome_model::{AccountId, Code, DeploymentId, KeyId};
use rhizome_service::{ApiError, ApiResult, clock};

use crate::Supervisor;

/// No signed call has a larger body.
const MAX_BODY_BYTES: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// May follow all tasks.
    Coordinator,
    /// May see and use what is its own.
    Account(AccountId),
}

impl Caller {
    /// Others cannot even tell whether a deployment exists.
    pub fn may_see(self, deployment: &DeploymentId) -> ApiResult<()> {
        match self {
            Self::Coordinator => Ok(()),
            Self::Account(id) if id == deployment.account => Ok(()),
            Self::Account(_) => Err(ApiError::not_found(format_args!("deployment {deployment}"))),
        }
    }

    /// A coordinator follows; it does nothing in an account's name.
    pub fn may_use(self, deployment: &DeploymentId) -> ApiResult<()> {
        self.may_change()?;
        self.may_see(deployment)
    }

    /// What is changed is changed by an account, whoever passes its word on.
    pub fn may_change(self) -> ApiResult<()> {
        match self {
            Self::Coordinator => {
                Err(ApiError::new(Code::Unauthorised, "only the account itself may do this"))
            }
            Self::Account(_) => Ok(()),
        }
    }
}

/// A request whose signature is good, with its body.
pub struct Signed {
    pub caller: Caller,
    pub key: KeyId,
    pub body: Bytes,
}

impl FromRequest<Arc<Supervisor>> for Signed {
    type Rejection = ApiError;

    async fn from_request(
        request: Request<Body>,
        state: &Arc<Supervisor>,
    ) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, MAX_BODY_BYTES).await.map_err(|_| {
            ApiError::new(Code::TooLarge, format!("at most {MAX_BODY_BYTES} bytes are taken"))
        })?;
        let now = clock::now_secs();
        let (path, query) = (parts.uri.path(), parts.uri.query());
        let key = state.callers.verify(&parts.method, path, query, &parts.headers, &body, now)?;
        let caller = if state.is_coordinator(&key).await {
            Caller::Coordinator
        } else {
            Caller::Account(active_account(state.statements.as_ref(), &key).await?.id)
        };
        Ok(Self { caller, key, body })
    }
}
