//! The unix socket on which the node's own processes ask who the node is, and have secrets opened.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::connect_info::Connected;
use axum::extract::rejection::JsonRejection;
use axum::extract::{ConnectInfo, State};
use axum::serve::IncomingStream;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rhizome_model::api::{NodeIdentity, UnsealReply, UnsealRequest};
use rhizome_model::{Code, Failure};
use rhizome_service::http::{always_healthy, with_common_routes};
use rhizome_service::{ApiError, ApiResult};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{SealError, SigningKey};

#[derive(Clone)]
struct Service {
    key: SigningKey,
    identity: watch::Receiver<NodeIdentity>,
}

/// The user at the other end, as the kernel says it.
#[derive(Debug, Clone, Copy)]
struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|cred| cred.uid()))
    }
}

/// Serves until the token is cancelled.
pub async fn serve(
    socket: &Path,
    key: SigningKey,
    identity: watch::Receiver<NodeIdentity>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let listener = bind(socket).await?;
    let _remove = RemoveOnDrop(socket.to_owned());
    let (router, api) = OpenApiRouter::new()
        .routes(routes!(unseal))
        .routes(routes!(who))
        .with_state(Arc::new(Service { key, identity }))
        .split_for_parts();
    let app = with_common_routes(router, api, always_healthy());
    axum::serve(listener, app.into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(|e| unusable(socket, &e))
}

/// Takes the place of a socket that nobody serves any more; never that of a live one.
async fn bind(socket: &Path) -> Result<UnixListener, Failure> {
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
    std::fs::set_permissions(socket, PermissionsExt::from_mode(0o600))
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
    State(service): State<Arc<Service>>,
    request: Result<Json<UnsealRequest>, JsonRejection>,
) -> ApiResult<Json<UnsealReply>> {
    if !may_unseal(uid, nix::unistd::geteuid().as_raw()) {
        tracing::warn!(?uid, "a foreign user asked for a secret");
        return Err(ApiError::new(
            Code::Unauthorised,
            "only root and the identity manager's own user may have secrets opened",
        ));
    }
    let Json(request) = request?;
    let secret = service.key.unseal(&request.context, &request.sealed).map_err(|e| {
        let code = match e {
            SealError::Closed { .. } => Code::Unauthorised,
            SealError::Form | SealError::TooLarge(_) | SealError::Key(_) => Code::BadRequest,
        };
        ApiError::new(code, e.to_string())
    })?;
    Ok(Json(UnsealReply { secret: STANDARD.encode(&*secret) }))
}

/// The mode of the socket keeps others away already; this holds also where somebody changed it.
fn may_unseal(peer: Option<u32>, ours: u32) -> bool {
    peer.is_some_and(|uid| uid == ours || uid == 0)
}

/// Who this node is.
#[utoipa::path(get, path = "/v1/identity", responses((status = 200, body = NodeIdentity)))]
async fn who(State(service): State<Arc<Service>>) -> Json<NodeIdentity> {
    Json(service.identity.borrow().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_our_own_user_have_secrets_opened() {
        assert!(may_unseal(Some(0), 1000) && may_unseal(Some(1000), 1000));
        assert!(
            !may_unseal(Some(1001), 1000) && !may_unseal(Some(1000), 0) && !may_unseal(None, 0)
        );
    }
}
