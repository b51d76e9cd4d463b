//! A real redis-server of one's own, and what can happen to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rhizome_queue::{Durability, QueueConfig};
use tempfile::TempDir;

/// Names the program, for another version or for Valkey.
pub const PROGRAM_VARIABLE: &str = "RHIZOME_REDIS_SERVER";

/// A redis-server on a unix socket in a folder of its own. It ends when it is dropped, and the
/// folder goes with it if it was made for it.
pub struct Server {
    program: PathBuf,
    durability: Durability,
    process: Child,
    folder: PathBuf,
    /// Removed together with us.
    temporary: Option<TempDir>,
}

impl Server {
    /// The program that the environment names, else `redis-server`.
    pub fn start(durability: Durability) -> anyhow::Result<Self> {
        let program = std::env::var_os(PROGRAM_VARIABLE);
        Self::start_program(
            program.map_or_else(|| "redis-server".into(), PathBuf::from),
            durability,
        )
    }

    pub fn start_program(program: PathBuf, durability: Durability) -> anyhow::Result<Self> {
        let temporary = tempfile::tempdir()?;
        let mut server = Self::open(program, temporary.path(), durability)?;
        server.temporary = Some(temporary);
        Ok(server)
    }

    /// In a folder that stays, on the data in it.
    pub fn open(program: PathBuf, folder: &Path, durability: Durability) -> anyhow::Result<Self> {
        let process = spawn(&program, folder, durability)?;
        Ok(Self { program, durability, process, folder: folder.to_owned(), temporary: None })
    }

    /// Where it listens; other files of the test may lie beside it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    pub fn config(&self) -> QueueConfig {
        QueueConfig { socket: self.socket(), durability: self.durability }
    }

    /// SIGKILL, and it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Whether it has ended, of itself or killed.
    pub fn is_gone(&mut self) -> anyhow::Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    /// On the data of the one that was killed.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = spawn(&self.program, &self.folder, self.durability)?;
        Ok(())
    }

    /// It stands still, and keeps its connections.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.process.id())?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to redis-server"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it was killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(program: &Path, folder: &Path, durability: Durability) -> anyhow::Result<Child> {
    let (file, sync) = match durability {
        Durability::Always => ("yes", "always"),
        Durability::Everysec => ("yes", "everysec"),
        Durability::None => ("no", "no"),
    };
    Command::new(program)
        .args(["--port", "0", "--unixsocket", "redis.sock", "--save", ""])
        .args(["--appendonly", file, "--appendfsync", sync])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}
