//! Mycelium, the network between nodes: a daemon of its own per node, kept running and looked at.
//!
//! ```text
//!   the node's key ─▶ memory file ─▶ mycelium ── TUN rz<8 digits>-my: 400::/7 ── peers
//!                                        ▲                  │ kernel: more special routes first
//!   state ◀── look, every few seconds ───┘                  ▼
//!                                                  bridge rz<8 digits>: the node's /64
//! ```
//!
//! - The daemon's key is the node's, so its address is the one that follows from the node's public
//!   key. The key goes over in memory that only we and the daemon have open, never by a file.
//! - The daemon gives its TUN the node's address and the route 400::/7; the bridge has the node's
//!   /64. So what comes for a machine is forwarded, and all else of 400::/7 goes out.
//! - It dies with us, and is started again when it dies alone, after a pause that grows.

mod api;
mod daemon;
mod peer;
mod state;

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use rhizome_model::api::NetworkView;
use rhizome_model::{Code, KeyId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::error::{Result, SalError};
use crate::node::Mark;
use crate::tool::{self, Tool};

pub use peer::{Peer, Peers};

const PROGRAM: &str = "mycelium";

/// All that a daemon needs.
#[derive(Clone)]
pub struct MyceliumConfig {
    pub program: PathBuf,
    /// The node's public key: for names.
    pub node: KeyId,
    /// The node's key as X25519 has it.
    pub secret: Zeroizing<[u8; 32]>,
    /// What has to come of it.
    pub address: Ipv6Addr,
    pub peers: Peers,
    /// Where other daemons connect to, over TCP and QUIC.
    pub port: u16,
    /// A folder that only we can write: nothing of a user's own settings is read.
    pub home: PathBuf,
}

// Not derived: a secret appears in no log.
impl std::fmt::Debug for MyceliumConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MyceliumConfig").field("node", &self.node).finish_non_exhaustive()
    }
}

/// A daemon that is kept running.
#[derive(Debug)]
pub struct Mycelium {
    state: watch::Receiver<NetworkView>,
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Mycelium {
    /// The daemon's program, where it is on PATH.
    pub fn find() -> Option<PathBuf> {
        Self::at(PROGRAM.as_ref()).ok()
    }

    /// The daemon's program, which has to be there.
    pub fn at(program: &Path) -> std::result::Result<PathBuf, SalError> {
        tool::find(program.as_os_str()).map_err(|_| {
            let message = format!(
                "there is no Mycelium daemon '{}', and Debian has no package of it: put its release \
                 on PATH (https://github.com/threefoldtech/mycelium/releases), or say where it is \
                 with --mycelium PROGRAM",
                program.display()
            );
            SalError::new(Code::MissingTool, message)
        })
    }

    /// Starts the daemon, and goes on starting it.
    pub async fn start(config: MyceliumConfig) -> std::result::Result<Self, SalError> {
        let driver = version(&config.program).await?;
        let (publish, state) = watch::channel(state::starting(driver, config.address));
        let stop = CancellationToken::new();
        let task = tokio::spawn(daemon::keep(config, publish, stop.clone()));
        Ok(Self { state, task, stop })
    }

    /// How it is; told anew whenever it was looked at.
    pub fn state(&self) -> watch::Receiver<NetworkView> {
        self.state.clone()
    }

    /// Ends the daemon.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the keeper of mycelium broke off");
        }
    }

    /// The state of a node that has no daemon.
    pub fn plain(address: Ipv6Addr) -> NetworkView {
        state::plain(address)
    }
}

/// As it calls itself: `mycelium 0.7.10`.
async fn version(program: &Path) -> Result<String> {
    let program = Mycelium::at(program)?;
    let ask = move || Tool::new(&program).arg("--version").run();
    let said = tokio::task::spawn_blocking(ask).await.unwrap_or_else(|e| {
        Err(SalError::new(Code::Internal, format!("asking mycelium broke off: {e}")))
    })?;
    Ok(said.lines().next().unwrap_or(PROGRAM).trim().chars().take(60).collect())
}

fn tun(config: &MyceliumConfig) -> String {
    Mark::new(config.node).tun()
}
