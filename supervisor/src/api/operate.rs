//! What operators see and change: queues as a whole, pools of runners, limits of accounts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use rhizome_model::api::{AccountLimits, PoolChange, PoolView, QueueView};
use rhizome_model::{AccountId, Code, Failure};
use rhizome_service::{ApiError, ApiResult};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::jobs::OfQueue;
use crate::audit::Entry;
use crate::caller::{Caller, Signed};
use crate::{Supervisor, view};

/// The name of the limits of all accounts that have none of their own.
const DEFAULT: &str = "default";

#[derive(Deserialize)]
pub struct OfAccount {
    account: String,
}

/// Depth, age, rate and outcomes of each queue, as a whole and by account.
#[utoipa::path(get, path = "/v1/queues", responses((status = 200, body = [QueueView]), (status = 403, body = Failure)))]
pub async fn queues(
    State(supervisor): State<Arc<Supervisor>>,
    signed: Signed,
) -> ApiResult<Json<Vec<QueueView>>> {
    supervisor.operators_only(signed.caller).await?;
    let stats = supervisor.queue.stats().await.map_err(Failure::from)?;
    let rates =
        stats.iter().map(|s| supervisor.rates.per_s(&s.queue, &s.ended)).collect::<Vec<_>>();
    let views = stats.into_iter().zip(rates);
    Ok(Json(views.map(|(s, rate)| view::queue(s, supervisor.facts.id, rate)).collect()))
}

/// The pools: which queues they serve, how many runners each has, whether it takes jobs.
#[utoipa::path(get, path = "/v1/runners", responses((status = 200, body = [PoolView]), (status = 403, body = Failure)))]
pub async fn runners(
    State(supervisor): State<Arc<Supervisor>>,
    signed: Signed,
) -> ApiResult<Json<Vec<PoolView>>> {
    supervisor.operators_only(signed.caller).await?;
    Ok(Json(supervisor.pools.view()))
}

/// Changes the pool that serves a queue: paused, drained, running, or with another number of
/// runners. It is kept over restarts.
#[utoipa::path(post, path = "/v1/runners/{queue}", request_body = PoolChange, params(("queue" = String, Path)), responses((status = 200, body = PoolView), (status = 403, body = Failure), (status = 404, body = Failure)))]
pub async fn change_runners(
    State(supervisor): State<Arc<Supervisor>>,
    Path(OfQueue { queue }): Path<OfQueue>,
    signed: Signed,
) -> ApiResult<Json<PoolView>> {
    let changed = async {
        supervisor.owners_only(signed.caller).await?;
        let change: PoolChange = read(&signed)?;
        Ok(supervisor.pools.change(&queue, change).await?)
    };
    let result = changed.await;
    supervisor.note_change(&signed, "runners", &queue, &result);
    Ok(Json(result?))
}

/// What accounts may use of the runners, by account; `default` are those of all others.
#[utoipa::path(get, path = "/v1/limits", responses((status = 200, body = BTreeMap<String, AccountLimits>), (status = 403, body = Failure)))]
pub async fn limits(
    State(supervisor): State<Arc<Supervisor>>,
    signed: Signed,
) -> ApiResult<Json<BTreeMap<String, AccountLimits>>> {
    supervisor.operators_only(signed.caller).await?;
    let limits = supervisor.queue.limits().await.map_err(Failure::from)?;
    let name = |account: Option<AccountId>| account.map_or(DEFAULT.into(), |a| a.to_string());
    Ok(Json(limits.into_iter().map(|(account, limits)| (name(account), limits)).collect()))
}

/// Sets what an account may use, or with `default` all that have no limits of their own. What is
/// absent is unlimited.
#[utoipa::path(put, path = "/v1/limits/{account}", request_body = AccountLimits, params(("account" = String, Path, description = "An account's id, or `default`")), responses((status = 200, body = AccountLimits), (status = 403, body = Failure)))]
pub async fn set_limits(
    State(supervisor): State<Arc<Supervisor>>,
    Path(OfAccount { account }): Path<OfAccount>,
    signed: Signed,
) -> ApiResult<Json<AccountLimits>> {
    let set = async {
        supervisor.owners_only(signed.caller).await?;
        let limits: AccountLimits = read(&signed)?;
        check(&limits)?;
        let whose = match account.as_str() {
            DEFAULT => None,
            id => Some(id.parse().map_err(|e| {
                ApiError::new(Code::BadRequest, format!("'{id}' is no account, nor 'default': {e}"))
            })?),
        };
        supervisor.queue.set_limits(whose, limits).await.map_err(Failure::from)?;
        Ok(limits)
    };
    let result = set.await;
    supervisor.note_change(&signed, "limits", &account, &result);
    Ok(Json(result?))
}

fn read<T: DeserializeOwned>(signed: &Signed) -> ApiResult<T> {
    serde_json::from_slice(&signed.body)
        .map_err(|e| ApiError::new(Code::BadRequest, format!("the request's body: {e}")))
}

/// Nothing would ever run under a limit of zero: pausing a pool is for that.
fn check(limits: &AccountLimits) -> ApiResult<()> {
    let zero = limits.concurrency == Some(0) || limits.burst == Some(0);
    if zero || limits.rate_per_s.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        let message = "concurrency, rate and burst are more than 0; leave out what is unlimited";
        return Err(ApiError::new(Code::BadRequest, message));
    }
    Ok(())
}

impl Supervisor {
    /// The owner of the node's farm, and coordinators, see what is not one account's.
    pub async fn is_operator(&self, caller: Caller) -> ApiResult<bool> {
        match caller {
            Caller::Coordinator => Ok(true),
            Caller::Account(account) => Ok(self.is_owner(account).await?),
        }
    }

    async fn operators_only(&self, caller: Caller) -> ApiResult<()> {
        if self.is_operator(caller).await? {
            return Ok(());
        }
        let farm = self.facts.farm;
        let message = format!("only the account that owns farm {farm} operates this node");
        Err(ApiError::new(Code::Unauthorised, message))
    }

    /// A coordinator passes on what the owner signed, and changes nothing itself.
    async fn owners_only(&self, caller: Caller) -> ApiResult<()> {
        caller.may_change()?;
        self.operators_only(caller).await
    }

    fn note_change<T>(
        &self,
        signed: &Signed,
        what: &'static str,
        whose: &str,
        result: &ApiResult<T>,
    ) {
        let body = String::from_utf8_lossy(&signed.body);
        let about = format!("{whose} {}", body.chars().take(200).collect::<String>());
        self.note(&Entry {
            about: Some(&about),
            signers: &[signed.key],
            what,
            refused: result.as_ref().err().map(|e| e.0.code),
            ..Entry::default()
        });
    }
}
