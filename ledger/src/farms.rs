//! `/farms`: a name under which nodes are run.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use rhizome_model::registrar::{Acknowledged, Farm, FarmCreated, FarmUpdate, NewFarm};
use rhizome_model::{AccountId, Failure, FarmId};

use crate::App;
use crate::auth::Authenticated;
use crate::db::{DbError, FarmFilter};
use crate::error::{LedgerError, Reply};
use crate::request::{Body, Params, Total, parse_number};

const MAX_NAME: usize = 40;
const STELLAR_LENGTH: usize = 56;

/// Farms, by id.
#[utoipa::path(get, path = "/farms", tag = "farms", params(
    ("farm_name" = Option<String>, Query, description = "A part of the name, in any case"),
    ("farm_id" = Option<u64>, Query), ("twin_id" = Option<u64>, Query),
    ("dedicated" = Option<bool>, Query),
    ("page" = Option<u64>, Query, description = "From 1"),
    ("size" = Option<u64>, Query, description = "50 without it, 1000 at most")),
    responses((status = 200, body = [Farm]), (status = 400, body = Failure)))]
pub async fn list(
    State(app): State<Arc<App>>,
    query: Query<HashMap<String, String>>,
) -> Reply<(Total, Json<Vec<Farm>>)> {
    let params = Params::new(query, "*db.FarmFilter");
    let filter = FarmFilter {
        id: params.number("farm_id")?,
        name_part: params.words("farm_name")?.map(Into::into),
        account: params.number("twin_id")?,
        dedicated: params.flag("dedicated")?,
    };
    let failed = |e| LedgerError::database("failed to list farms", &e);
    let farms = app.db.farms(&filter, params.page()?).await.map_err(failed)?;
    let total = app.db.count_farms(&filter).await.map_err(failed)?;
    Ok((Total(total), Json(farms)))
}

/// One farm.
#[utoipa::path(get, path = "/farms/{farm_id}", tag = "farms", params(("farm_id" = u64, Path)),
    responses((status = 200, body = Farm), (status = 400, body = Failure), (status = 404, body = Failure)))]
pub async fn get(State(app): State<Arc<App>>, Path(id): Path<String>) -> Reply<Json<Farm>> {
    let farm = find(&app, farm_id(&id)?, "could not find any records").await?;
    Ok(Json(farm))
}

/// Makes a farm of the caller's account.
#[utoipa::path(post, path = "/farms", tag = "farms", request_body = NewFarm, responses(
    (status = 201, body = FarmCreated), (status = 400, body = Failure),
    (status = 401, body = Failure), (status = 409, description = "the name is taken", body = Failure)))]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Authenticated,
    body: Body,
) -> Reply<(StatusCode, Json<FarmCreated>)> {
    let unparsed = |e: String| LedgerError::bad_request(format!("failed to parse farm info: {e}"));
    let farm: NewFarm = body.json().map_err(unparsed)?;
    check_name(&farm.farm_name).map_err(unparsed)?;
    if farm.twin_id == AccountId(0) {
        return Err(unparsed("twin_id must be a number from 1".into()));
    }
    farm.stellar_address.as_deref().map_or(Ok(()), check_stellar).map_err(unparsed)?;
    caller.must_be(farm.twin_id)?;
    match app.db.create_farm(&farm).await {
        Ok(farm_id) => {
            tracing::info!(farm = %farm_id, name = farm.farm_name, account = %farm.twin_id, "a farm was made");
            Ok((StatusCode::CREATED, Json(FarmCreated { farm_id })))
        }
        Err(DbError::Duplicate) => Err(LedgerError::conflict("record already exists")),
        Err(e) => Err(LedgerError::database("failed to create farm", &e)),
    }
}

/// Changes what is given of a farm.
#[utoipa::path(patch, path = "/farms/{farm_id}", tag = "farms", params(("farm_id" = u64, Path)),
    request_body = FarmUpdate, responses(
    (status = 200, body = Acknowledged), (status = 400, body = Failure), (status = 401, body = Failure),
    (status = 404, body = Failure), (status = 409, description = "the name is taken", body = Failure)))]
pub async fn update(
    State(app): State<Arc<App>>,
    caller: Authenticated,
    Path(id): Path<String>,
    body: Body,
) -> Reply<Json<Acknowledged>> {
    let id = farm_id(&id)?;
    let unparsed = |e: String| LedgerError::bad_request(format!("failed to parse farm info: {e}"));
    let update: FarmUpdate = body.json().map_err(unparsed)?;
    // v4's client sends what it does not change as an empty text.
    let name = update.farm_name.as_deref().filter(|n| !n.is_empty());
    let stellar = update.stellar_address.as_deref().filter(|s| !s.is_empty());
    name.map_or(Ok(()), check_name).map_err(unparsed)?;
    stellar.map_or(Ok(()), check_stellar).map_err(unparsed)?;
    let farm = find(&app, id, "Farm not found").await?;
    caller.must_be(farm.twin_id)?;
    match app.db.update_farm(id, name, stellar, update.dedicated).await {
        Ok(()) => Ok(Json(Acknowledged { message: "Farm was updated successfully".into() })),
        Err(DbError::Duplicate) => Err(LedgerError::conflict("record already exists")),
        Err(e) => Err(LedgerError::database("failed to update farm", &e)),
    }
}

async fn find(app: &App, id: FarmId, missing: &'static str) -> Reply<Farm> {
    app.db
        .farm(id)
        .await
        .map_err(|e| LedgerError::database("failed to get farm", &e))?
        .ok_or_else(|| LedgerError::not_found(missing))
}

fn farm_id(text: &str) -> Reply<FarmId> {
    parse_number(text)
        .map(FarmId)
        .map_err(|e| LedgerError::bad_request(format!("Invalid farm_id: {e}")))
}

fn check_name(name: &str) -> Result<(), String> {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric());
    if letters && (1..=MAX_NAME).contains(&name.len()) {
        Ok(())
    } else {
        Err(format!("farm_name must be 1 to {MAX_NAME} letters and digits"))
    }
}

fn check_stellar(address: &str) -> Result<(), String> {
    let letters = address.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if letters && address.starts_with('G') && address.len() == STELLAR_LENGTH {
        Ok(())
    } else {
        Err(format!("stellar_address must be G and {} more letters and digits", STELLAR_LENGTH - 1))
    }
}
