//! The unix sockets on which the node's own processes ask who the node is, have secrets opened,
//! have things signed and encrypted, and have the ledger told what accounts use. The kernel says who asks (SO_PEERCRED).

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::connect_info::Connected;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, State};
use axum::serve::IncomingStream;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::api::{
    GenerateRequest, NodeIdentity, NodeUsage, PurposeReply, PurposeRequest, UnsealReply,
    UnsealRequest, UsageReply, VerifyReply, VerifyRequest,
};
use rhizome_model::{Code, Failure, KeyId};
use rhizome_service::http::{always_healthy, with_common_routes};
use rhizome_service::{ApiError, ApiResult};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use zeroize::Zeroizing;

use super::grants::{self, Grant, Operation};
use super::{Facts, FactsSource};
use crate::{LedgerClient, Purpose, SealError, SigningKey, seal, verify_for};

/// What the sockets serve.
pub struct Service {
    inner: Arc<Inner>,
}

pub struct Inner {
    pub key: SigningKey,
    pub identity: watch::Receiver<NodeIdentity>,
    /// It signs with `key`.
    pub ledger: LedgerClient,
    pub facts: FactsSource,
    pub grants: Vec<Grant>,
}

/// Whoever waits for the ledger holds up a deployment.
const USAGE_WITHIN: Duration = Duration::from_secs(9);

/// The user at the other end, as the kernel says it.
#[derive(Debug, Clone, Copy)]
struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|cred| cred.uid()))
    }
}

impl Service {
    pub fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// Serves until the token is cancelled.
    pub async fn serve(
        &self,
        socket: &Path,
        mode: u32,
        shutdown: CancellationToken,
    ) -> Result<(), Failure> {
        let listener = bind(socket, mode).await?;
        let _remove = RemoveOnDrop(socket.to_owned());
        let (router, api) = OpenApiRouter::new()
            .routes(routes!(unseal))
            .routes(routes!(generate))
            .routes(routes!(usage))
            .routes(routes!(who))
            .routes(routes!(hardware))
            .routes(routes!(sign))
            .routes(routes!(verify))
            .routes(routes!(encrypt))
            .routes(routes!(decrypt))
            .with_state(self.inner.clone())
            .split_for_parts();
        let app = with_common_routes(router, api, always_healthy());
        axum::serve(listener, app.into_make_service_with_connect_info::<Peer>())
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await
            .map_err(|e| unusable(socket, &e))
    }
}

/// Takes the place of a socket that nobody serves any more; never that of a live one.
async fn bind(socket: &Path, mode: u32) -> Result<UnixListener, Failure> {
    match UnixStream::connect(socket).await {
        Ok(_) => {
            return Err(Failure::new(
                Code::PortTaken,
                format!("another identity manager serves {}; stop it first", socket.display()),
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(socket).map_err(|e| unusable(socket, &e))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(|e| unusable(socket, &e))?;
    std::fs::set_permissions(socket, PermissionsExt::from_mode(mode))
        .map_err(|e| unusable(socket, &e))?;
    Ok(listener)
}

fn unusable(socket: &Path, error: &io::Error) -> Failure {
    Failure::new(Code::StateNotWritable, format!("cannot serve {}: {error}", socket.display()))
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        // A socket that stays behind is replaced at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens a secret that was sealed to this node.
#[utoipa::path(post, path = "/v1/unseal", request_body = UnsealRequest,
    responses((status = 200, body = UnsealReply), (status = 403, body = Failure)))]
async fn unseal(
    ConnectInfo(Peer(uid)): ConnectInfo<Peer>,
    State(service): State<Arc<Inner>>,
    request: Result<Json<UnsealRequest>, JsonRejection>,
) -> ApiResult<Json<UnsealReply>> {
    check_trusted(uid)?;
    let Json(request) = request?;
    if request.context.starts_with(PURPOSE) {
        let message = "this was encrypted for a purpose: /v1/decrypt opens it";
        return Err(ApiError::new(Code::WrongPurpose, message));
    }
    let secret = service.key.unseal(&request.context, &request.sealed).map_err(refuse)?;
    Ok(Json(UnsealReply { secret: STANDARD.encode(&*secret) }))
}

/// The secret that this node derives for a resource: always the same one.
#[utoipa::path(post, path = "/v1/generate", request_body = GenerateRequest,
    responses((status = 200, body = UnsealReply), (status = 403, body = Failure)))]
async fn generate(
    ConnectInfo(Peer(uid)): ConnectInfo<Peer>,
    State(service): State<Arc<Inner>>,
    request: Result<Json<GenerateRequest>, JsonRejection>,
) -> ApiResult<Json<UnsealReply>> {
    check_trusted(uid)?;
    let Json(GenerateRequest { resource }) = request?;
    let secret = service.key.derive_secret(&resource.to_string());
    Ok(Json(UnsealReply { secret: STANDARD.encode(secret.as_bytes()) }))
}

/// Tells the ledger what an account's deployments reserve of this node; what it says to that.
#[utoipa::path(post, path = "/v1/usage", request_body = NodeUsage, responses(
    (status = 200, body = UsageReply), (status = 403, body = Failure), (status = 503, body = Failure)))]
async fn usage(
    ConnectInfo(Peer(uid)): ConnectInfo<Peer>,
    State(service): State<Arc<Inner>>,
    request: Result<Json<NodeUsage>, JsonRejection>,
) -> ApiResult<Json<UsageReply>> {
    check_trusted(uid)?;
    let Json(said) = request?;
    let registered = service.identity.borrow().registered;
    let Some(registered) = registered else {
        let message = "this node is not registered yet, so the ledger counts nothing for it";
        return Err(ApiError::new(Code::Unavailable, message));
    };
    let telling = service.ledger.node_usage(registered.node, &said);
    let told = tokio::time::timeout(USAGE_WITHIN, telling).await.unwrap_or_else(|_| {
        let why = format!("no answer within {} s", USAGE_WITHIN.as_secs());
        Err(Failure::new(Code::Unavailable, why))
    });
    Ok(Json(told.map_err(|failure| match failure.code {
        Code::Unavailable => {
            let message = "no ledger can be reached that counts what accounts use of the farm";
            Failure::new(Code::Unavailable, message).with_detail(failure.message)
        }
        _ => failure,
    })?))
}

fn check_trusted(uid: Option<u32>) -> Result<(), ApiError> {
    if grants::is_trusted(uid, ours()) {
        return Ok(());
    }
    tracing::warn!(?uid, "a foreign user asked for what is the node's own");
    Err(ApiError::new(
        Code::Unauthorised,
        "only root and the identity manager's own user may ask for this",
    ))
}

/// Who this node is.
#[utoipa::path(get, path = "/v1/identity", responses((status = 200, body = NodeIdentity)))]
async fn who(State(service): State<Arc<Inner>>) -> Json<NodeIdentity> {
    Json(service.identity.borrow().clone())
}

/// What this node is made of.
#[utoipa::path(get, path = "/v1/hardware", responses((status = 200, body = Facts)))]
async fn hardware(State(service): State<Arc<Inner>>) -> ApiResult<Json<Facts>> {
    Ok(Json((service.facts)()?))
}

/// Signs bytes for a purpose.
#[utoipa::path(post, path = "/v1/sign", request_body = PurposeRequest, responses(
    (status = 200, body = PurposeReply), (status = 400, body = Failure), (status = 403, body = Failure)))]
async fn sign(
    ConnectInfo(Peer(uid)): ConnectInfo<Peer>,
    State(service): State<Arc<Inner>>,
    request: Result<Json<PurposeRequest>, JsonRejection>,
) -> ApiResult<Json<PurposeReply>> {
    let (purpose, data, peer) = service.admit(uid, request, Operation::Sign)?;
    if peer.is_some() {
        return Err(ApiError::new(Code::BadRequest, "a signature is for everybody: give no peer"));
    }
    Ok(reply(&service.key.sign_for(&purpose, &data)))
}

/// Checks a signature that any node made for a purpose. Open to everybody who can connect.
#[utoipa::path(post, path = "/v1/verify", request_body = VerifyRequest, responses(
    (status = 200, body = VerifyReply), (status = 400, body = Failure)))]
async fn verify(
    request: Result<Json<VerifyRequest>, JsonRejection>,
) -> ApiResult<Json<VerifyReply>> {
    let Json(request) = request?;
    let purpose = purpose(&request.purpose)?;
    let (data, signature) = (decode(&request.data)?, decode(&request.signature)?);
    let good = verify_for(&request.key, &purpose, &data, &signature).is_ok();
    Ok(Json(VerifyReply { good }))
}

/// Encrypts bytes for a purpose: to this node itself, or between it and a peer (ECDH).
#[utoipa::path(post, path = "/v1/encrypt", request_body = PurposeRequest, responses(
    (status = 200, body = PurposeReply), (status = 400, body = Failure), (status = 403, body = Failure)))]
async fn encrypt(
    ConnectInfo(Peer(uid)): ConnectInfo<Peer>,
    State(service): State<Arc<Inner>>,
    request: Result<Json<PurposeRequest>, JsonRejection>,
) -> ApiResult<Json<PurposeReply>> {
    let (purpose, data, peer) = service.admit(uid, request, Operation::Encrypt)?;
    let data = match peer {
        Some(peer) => {
            STANDARD.encode(service.key.ecdh_encrypt(&peer, &purpose, &data).map_err(refuse)?)
        }
        None => seal(&service.key.key_id(), &purpose.context(), &data).map_err(refuse)?,
    };
    Ok(Json(PurposeReply { data }))
}

/// Opens what was encrypted to this node for a purpose, by itself or by a peer (ECDH).
#[utoipa::path(post, path = "/v1/decrypt", request_body = PurposeRequest, responses(
    (status = 200, body = PurposeReply), (status = 400, body = Failure), (status = 403, body = Failure)))]
async fn decrypt(
    ConnectInfo(Peer(uid)): ConnectInfo<Peer>,
    State(service): State<Arc<Inner>>,
    request: Result<Json<PurposeRequest>, JsonRejection>,
) -> ApiResult<Json<PurposeReply>> {
    let (purpose, data, peer) = service.admit(uid, request, Operation::Decrypt)?;
    let opened = match peer {
        Some(peer) => service.key.ecdh_decrypt(&peer, &purpose, &data),
        None => service.key.unseal(&purpose.context(), &STANDARD.encode(&*data)),
    };
    Ok(reply(&opened.map_err(refuse)?))
}

/// What the contexts of purposes begin with ([`Purpose::context`]).
const PURPOSE: &str = "purpose:";

/// A purpose, bytes, and the other side.
type Admitted = (Purpose, Zeroizing<Vec<u8>>, Option<KeyId>);

impl Inner {
    /// What is asked for, if this user may ask for it.
    fn admit(
        &self,
        uid: Option<u32>,
        request: Result<Json<PurposeRequest>, JsonRejection>,
        operation: Operation,
    ) -> Result<Admitted, ApiError> {
        let Json(request) = request?;
        let purpose = purpose(&request.purpose)?;
        grants::check(&self.grants, uid, ours(), &purpose, operation).inspect_err(|failure| {
            tracing::warn!(?uid, purpose = purpose.as_str(), ?operation, error = %failure,
                "a user without the right asked for the key");
        })?;
        Ok((purpose, decode(&request.data)?, request.peer))
    }
}

fn purpose(text: &str) -> Result<Purpose, ApiError> {
    text.parse().map_err(|e| ApiError::new(Code::BadRequest, e))
}

fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let bytes = STANDARD.decode(text).map(Zeroizing::new);
    bytes.map_err(|_| ApiError::new(Code::BadRequest, "this is not base64"))
}

fn reply(bytes: &[u8]) -> Json<PurposeReply> {
    Json(PurposeReply { data: STANDARD.encode(bytes) })
}

fn refuse(error: SealError) -> ApiError {
    let code = match error {
        SealError::Closed { .. } => Code::Unauthorised,
        SealError::Form | SealError::TooLarge(_) | SealError::Key(_) => Code::BadRequest,
    };
    ApiError::new(code, error.to_string())
}

fn ours() -> u32 {
    nix::unistd::geteuid().as_raw()
}
