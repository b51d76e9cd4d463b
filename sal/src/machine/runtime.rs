//! The OCI runtime: crun where the cgroup controllers are on v2, runc where they are on v1.

use std::path::{Path, PathBuf};

use rhizome_model::kind::MachineSpec;

use super::bundle::{CPU_PERIOD_US, cpu_quota_us};
use super::place::Place;
use crate::cgroup::Version;
use crate::error::Result;
use crate::node::Node;
use crate::tool::{self, Tool};

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

    /// Gives a running container other limits.
    pub(super) fn update(&self, place: &Place, spec: &MachineSpec) -> Result<()> {
        let memory = spec.memory.0.to_string();
        self.tool()
            .arg("update")
            .args(["--cpu-period", &CPU_PERIOD_US.to_string()])
            .args(["--cpu-quota", &cpu_quota_us(spec.cpu).to_string()])
            .args(["--memory", &memory, "--memory-swap", &memory])
            .args(["--pids-limit", &spec.pids.to_string()])
            .arg(&place.container)
            .run()
            .map(drop)
    }

    /// A command in a running container, with one more variable in its environment.
    pub(super) fn exec(&self, place: &Place, variable: &str, command: &[String]) -> Tool {
        self.tool()
            .args(["exec", "--env", variable])
            .arg(&place.container)
            .args(command)
            .timeout(None)
    }

    fn tool(&self) -> Tool {
        Tool::new(&self.program).arg("--root").arg(&self.root)
    }
}
