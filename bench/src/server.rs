//! A redis-server for one measurement, in a folder of its own; both are gone when it is dropped.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr};
use rhizome_queue::Durability;
use tempfile::TempDir;
use tokio::process::{Child, Command};

const LOOKS: u32 = 500;
const BETWEEN: Duration = Duration::from_millis(10);

pub struct Server {
    _process: Child,
    folder: TempDir,
    probe: MultiplexedConnection,
}

/// What it used until now.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    /// Of all its threads, in user and system mode.
    pub cpu_us: f64,
    /// Without the buffers of connections and of the append-only file.
    pub memory: f64,
    pub commands: f64,
}

impl Server {
    pub async fn start(durability: Durability) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rhizome-peers-").tempdir()?;
        let always = durability == Durability::Always;
        let process = Command::new("redis-server")
            .args(["--port", "0", "--unixsocket", "redis.sock", "--save", ""])
            .args(["--appendonly", if always { "yes" } else { "no" }])
            .args(["--appendfsync", if always { "always" } else { "no" }])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start redis-server; is it installed?")?;
        let probe = connect(folder.path().join("redis.sock")).await?;
        Ok(Self { _process: process, folder, probe })
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    pub async fn used(&mut self) -> Result<Used> {
        let mut info = redis::cmd("INFO");
        info.arg("cpu").arg("memory").arg("stats");
        let info: String = info.query_async(&mut self.probe).await?;
        let field = |name: &str| {
            let value = info.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
            let number = value.and_then(|v| v.trim().parse::<f64>().ok());
            number.with_context(|| format!("INFO says nothing of {name}"))
        };
        let buffers = field("mem_clients_normal")? + field("mem_aof_buffer")?;
        Ok(Used {
            cpu_us: (field("used_cpu_user")? + field("used_cpu_sys")?) * 1e6,
            memory: field("used_memory")? - buffers,
            commands: field("total_commands_processed")?,
        })
    }
}

async fn connect(socket: PathBuf) -> Result<MultiplexedConnection> {
    let client = Client::open(ConnectionAddr::Unix(socket))?;
    let mut looks = 0;
    loop {
        match client.get_multiplexed_async_connection().await {
            Ok(connection) => return Ok(connection),
            Err(error) if looks == LOOKS => return Err(error).context("no redis-server came up"),
            Err(_) => looks += 1,
        }
        tokio::time::sleep(BETWEEN).await;
    }
}
