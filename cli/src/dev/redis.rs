//! The Redis of a node: on a unix socket only, with everything acknowledged on disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::services::process::{Process, Stop};

pub fn socket(state: &Path) -> PathBuf {
    state.join("redis.sock")
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
