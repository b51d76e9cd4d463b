//! The Redis of a node: on a unix socket only, with everything acknowledged on disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rhizome_model::{Code, Failure};

use crate::services::process::{Process, Stop};

/// A Redis that was told to stop has stopped by then.
const LAST_RUN_ENDS: Duration = Duration::from_secs(30);

pub fn socket(state: &Path) -> PathBuf {
    state.join("redis.sock")
}

/// Waits until nobody serves the socket: the Redis of a run that was killed may still be writing its
/// last, and two on one folder would ruin it.
pub async fn wait_gone(state: &Path) -> Result<(), Failure> {
    let socket = socket(state);
    let gone = async {
        while tokio::net::UnixStream::connect(&socket).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LAST_RUN_ENDS, gone).await.map_err(|_| {
        let message = format!(
            "another redis-server serves {}: stop it, or choose another folder with --state",
            socket.display()
        );
        Failure::new(Code::Conflict, message)
    })
}

pub fn process(state: &Path, log: PathBuf) -> Process {
    let socket = socket(state);
    let args = [
        "--port",
        "0",
        "--unixsocket",
        &socket.to_string_lossy(),
        "--unixsocketperm",
        "700",
        "--dir",
        &state.to_string_lossy(),
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--save",
        "",
        "--maxmemory-policy",
        "noeviction",
        "--daemonize",
        "no",
    ];
    Process {
        name: "redis-server".into(),
        program: "redis-server".into(),
        args: args.map(str::to_owned).to_vec(),
        stop: Stop::Signal,
        patience: Duration::from_secs(30),
        log: Some(log),
    }
}
