//! Containers, by an OCI runtime: crun where the cgroup controllers are on v2, runc where they are
//! on v1.

mod bundle;
pub(crate) mod mounts;

use std::path::{Path, PathBuf};

use rhizome_model::kind::Restart;
use rhizome_model::{Bytes, Cpu};

pub(crate) use self::bundle::Bundle;
use crate::cgroup::{self, CPU_PERIOD_US, Version, cpu_quota_us};
use crate::error::Result;
use crate::node::Node;
use crate::program::{Call, Place, Program, Start};
use crate::tool::{self, Tool};

/// The runtime starts a container within this.
const START_TIMEOUT_MS: u64 = 60_000;
/// From SIGTERM to SIGKILL.
const GRACE_MS: u64 = 10_000;
/// As runc names what is still the runtime.
const BECOMING: &str = "runc:[";
/// The kernel counts memory in pages; the largest there are.
const PAGE: u64 = 64 << 10;

/// What a container may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub cpu: Cpu,
    pub memory: Bytes,
    pub pids: u32,
}

impl Limits {
    /// Which of them do not hold.
    pub fn missing(&self, seen: cgroup::Limits) -> Vec<&'static str> {
        let quota = u64::try_from(cpu_quota_us(self.cpu)).unwrap_or(u64::MAX);
        let in_pages =
            |limit: u64| self.memory.0.checked_sub(limit).is_some_and(|less| less < PAGE);
        let is = |limit: Option<u64>, wanted: u64| limit.is_none_or(|limit| limit == wanted);
        let all = [
            ("cpu", is(seen.cpu_quota_us, quota)),
            ("memory", seen.memory.is_none_or(in_pages)),
            ("pids", is(seen.pids, self.pids.into())),
        ];
        all.into_iter().filter(|(_, limited)| !limited).map(|(name, _)| name).collect()
    }
}

/// A folder of the node that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub source: PathBuf,
    /// In the container.
    pub path: String,
    pub readonly: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
}

impl Runtime {
    pub fn find(node: &Node) -> Result<Self> {
        // crun refuses limits in hybrid mode; runc knows both, crun is the quicker one.
        let name = match node.cgroups.version {
            Version::V1 => "runc",
            Version::V2 => "crun",
        };
        let program = tool::find(name.as_ref())?;
        Ok(Self { name, program, root: node.runtime_root() })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The container of the bundle in a program's folder; `what` as errors name it.
    pub fn container(&self, place: &Place, what: String, restart: Restart) -> Program {
        let start = Call::new(&self.program)
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(place.starter_log())
            .args(["--log-format", "json", "run", "--detach", "--pid-file"])
            .arg(place.pid_file())
            .arg("--bundle")
            .arg(&place.dir)
            .arg(&place.name);
        Program {
            what,
            start: Start::Command(start),
            start_timeout_ms: START_TIMEOUT_MS,
            stop: None,
            grace_ms: GRACE_MS,
            verdict: None,
            becoming: Some(BECOMING.to_owned()),
            serial: None,
            clears: vec![self.root.join(&place.name)],
            restart,
        }
    }

    /// Gives a running container other limits.
    pub fn update(&self, place: &Place, limits: &Limits) -> Result<()> {
        let memory = limits.memory.0.to_string();
        self.tool()
            .arg("update")
            .args(["--cpu-period", &CPU_PERIOD_US.to_string()])
            .args(["--cpu-quota", &cpu_quota_us(limits.cpu).to_string()])
            .args(["--memory", &memory, "--memory-swap", &memory])
            .args(["--pids-limit", &limits.pids.to_string()])
            .arg(&place.name)
            .run()
            .map(drop)
    }

    /// A command in a running container, with one more variable in its environment.
    pub fn exec(&self, place: &Place, variable: &str, command: &[String]) -> Tool {
        self.tool().args(["exec", "--env", variable]).arg(&place.name).args(command).timeout(None)
    }

    fn tool(&self) -> Tool {
        Tool::new(&self.program).arg("--root").arg(&self.root)
    }
}
