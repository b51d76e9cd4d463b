//! A peer's process, from outside.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rhizome_queue::Durability;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::ask::{Answer, Ask};
use crate::figures::Missing;
use crate::peers::Kind;

pub struct Process {
    child: Child,
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    errors: PathBuf,
}

impl Process {
    /// `role` names it within the folder of its redis-server.
    pub fn start(kind: Kind, role: &str, socket: &Path, durability: Durability) -> Result<Self> {
        let mut command = match kind {
            Kind::BullmqNode => {
                let mut node = Command::new("node");
                node.arg(node_folder().join("bullmq.mjs")).arg(socket);
                node
            }
            _ => {
                let mut peer = Command::new(std::env::current_exe()?);
                peer.args(["--serve", kind.name()]).arg("--socket").arg(socket);
                if durability == Durability::Always {
                    peer.arg("--always");
                }
                peer
            }
        };
        let errors = socket.with_file_name(format!("{role}.err"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", kind.name()))?;
        let asks = child.stdin.take().context("no standard input")?;
        let out = child.stdout.take().context("no standard output")?;
        Ok(Self { child, asks, answers: BufReader::new(out).lines(), errors })
    }

    pub async fn ask(&mut self, ask: &Ask, limit: Duration) -> Result<Answer, Missing> {
        let line = tokio::time::timeout(limit, self.exchange(ask)).await;
        let line = line.map_err(|_| Missing::TimedOut(limit))?;
        let answer = line.and_then(|l| serde_json::from_str::<Answer>(&l).ok());
        let answer = answer.ok_or_else(|| Missing::Failed(self.last_words()))?;
        match answer.failed {
            Some(why) => Err(Missing::Failed(why)),
            None => Ok(answer),
        }
    }

    async fn exchange(&mut self, ask: &Ask) -> Option<String> {
        let line = serde_json::to_string(ask).ok()?;
        self.asks.write_all(format!("{line}\n").as_bytes()).await.ok()?;
        self.answers.next_line().await.ok()?
    }

    /// What it printed last on standard error.
    fn last_words(&self) -> String {
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let last = errors.lines().rev().find(|l| !l.trim().is_empty());
        last.unwrap_or("it ended without a word").trim().to_owned()
    }

    /// As if the machine had pulled its plug: SIGKILL.
    pub async fn kill(&mut self) -> Result<ExitStatus> {
        self.child.start_kill()?;
        Ok(self.child.wait().await?)
    }

    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }
}

pub fn node_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("node")
}

/// Why BullMQ on Node cannot be measured; none if it can.
pub fn node_is_missing() -> Option<&'static str> {
    if !node_folder().join("node_modules/bullmq").exists() {
        return Some("bench/node has no node_modules: run `npm install` there");
    }
    let node = std::process::Command::new("node").arg("--version").output();
    node.is_err().then_some("there is no node on this machine")
}
