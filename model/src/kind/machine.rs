//! `machine`: something that runs.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Kind, Reference, WorkloadKind};
use crate::{Bytes, Capacity, Cpu, Name};

/// A container with an address of its own.
pub struct Machine;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Where the root file system comes from: `file:///path` of a tar archive or of a folder.
    pub image: String,
    /// How it is kept apart from the others.
    #[serde(default)]
    pub isolation: Isolation,
    /// Processors; fractions are allowed.
    #[serde(default = "default_cpu")]
    pub cpu: Cpu,
    /// Memory, for example "512MiB".
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// The most that the root file system can grow above the image.
    #[serde(default = "default_disk")]
    pub disk: Bytes,
    /// The most processes and threads at a time.
    #[serde(default = "default_pids")]
    pub pids: u32,
    /// The program and its arguments. Without it `/sbin/init` of the image runs.
    #[serde(default = "default_command")]
    pub command: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Volumes and where they appear.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// When it is started again after it ended.
    #[serde(default)]
    pub restart: Restart,
    /// The folder that the program starts in.
    #[serde(default = "default_workdir")]
    pub workdir: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The volume: its handle, or its name.
    pub volume: Name,
    /// The absolute path in the machine.
    pub path: String,
    /// Whether the machine can only read it.
    #[serde(default)]
    pub readonly: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Namespaces and cgroups under the node's kernel.
    #[default]
    Container,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// However it ended.
    #[default]
    Always,
    /// When it ended with an exit status other than 0 or by a signal.
    OnFailure,
    /// It runs once; `wait()` in a script waits for its end.
    Never,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineStatus {
    pub state: MachineState,
    /// Whether it does what it should, with the reason where it does not.
    pub health: Health,
    /// Its IPv6 address.
    pub address: Ipv6Addr,
    pub hostname: String,
    /// The program that runs it, for example "runc".
    pub driver: String,
    /// The process id on the node while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The last exit status; 128 + n when signal n ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Why it ended the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
    /// How often it was started again.
    #[serde(default)]
    pub restarts: u32,
    /// While it backs off, when it is started again: Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_start_at: Option<i64>,
    /// Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// Of the root file system, the bytes that are its own.
    #[serde(default)]
    pub disk_used: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    Running,
    /// It ended and its restart policy lets it rest.
    Exited,
    /// It ended and will be started again after a pause.
    BackingOff,
    /// It was stopped on request.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum Health {
    Good,
    Failing { reason: String },
}

fn default_cpu() -> Cpu {
    Cpu::cores(1)
}
fn default_memory() -> Bytes {
    Bytes::mib(256)
}
fn default_disk() -> Bytes {
    Bytes::mib(256)
}
fn default_pids() -> u32 {
    512
}
fn default_command() -> Vec<String> {
    vec!["/sbin/init".into()]
}
fn default_workdir() -> String {
    "/".into()
}

const MIN_MEMORY: Bytes = Bytes::mib(4);
const MIN_DISK: Bytes = Bytes::mib(1);
const MAX_ENV: usize = 256;
const MAX_COMMAND: usize = 256;
const MAX_MOUNTS: usize = 32;
/// Where a mount would take away what the runtime itself puts there.
const RESERVED_PATHS: [&str; 4] = ["/", "/proc", "/sys", "/dev"];

impl Kind for Machine {
    type Spec = MachineSpec;
    type Status = MachineStatus;

    const SUMMARY: &'static str = "A container with its own root file system and IPv6 address.";

    fn check(spec: &MachineSpec) -> Result<(), String> {
        let image = spec.image.strip_prefix("file://").unwrap_or_default();
        if !image.starts_with('/') {
            return Err(format!("image: write file:///path, not '{}'", spec.image));
        }
        check_text("image", &spec.image)?;
        if spec.cpu.millis() < 10 {
            return Err("cpu: at least 0.01".into());
        }
        if spec.memory < MIN_MEMORY {
            return Err(format!("memory: at least {MIN_MEMORY}, not {}", spec.memory));
        }
        if spec.disk < MIN_DISK {
            return Err(format!("disk: at least {MIN_DISK}, not {}", spec.disk));
        }
        if spec.pids == 0 {
            return Err("pids: at least 1".into());
        }
        if spec.command.is_empty() || spec.command.len() > MAX_COMMAND {
            return Err(format!("command: a program and its arguments, at most {MAX_COMMAND}"));
        }
        for (i, word) in spec.command.iter().enumerate() {
            check_text(&format!("command[{i}]"), word)?;
        }
        if spec.env.len() > MAX_ENV {
            return Err(format!("env: at most {MAX_ENV} variables"));
        }
        for (key, value) in &spec.env {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(format!("env: '{key}' is not a variable's name"));
            }
            check_text(&format!("env.{key}"), value)?;
        }
        check_path("workdir", &spec.workdir)?;
        if spec.mounts.len() > MAX_MOUNTS {
            return Err(format!("mounts: at most {MAX_MOUNTS}"));
        }
        for (i, mount) in spec.mounts.iter().enumerate() {
            let field = format!("mounts[{i}].path");
            check_path(&field, &mount.path)?;
            let path = mount.path.trim_end_matches('/');
            if RESERVED_PATHS.iter().any(|r| path == r.trim_end_matches('/')) {
                return Err(format!("{field}: nothing can be mounted on '{}'", mount.path));
            }
            if spec.mounts[..i].iter().any(|m| m.path.trim_end_matches('/') == path) {
                return Err(format!("{field}: something is mounted on '{}' already", mount.path));
            }
        }
        Ok(())
    }

    fn demand(spec: &MachineSpec) -> Capacity {
        Capacity { cpu: spec.cpu, memory: spec.memory, disk: spec.disk }
    }

    /// Limits, the size of the disk and the restart policy change while it runs.
    fn fixed(spec: &MachineSpec) -> MachineSpec {
        MachineSpec {
            cpu: Cpu::default(),
            memory: Bytes::default(),
            disk: Bytes::default(),
            pids: 0,
            restart: Restart::default(),
            ..spec.clone()
        }
    }

    fn references(spec: &MachineSpec) -> Vec<Reference> {
        let volumes = spec.mounts.iter().enumerate().map(|(i, mount)| Reference {
            field: format!("mounts[{i}].volume"),
            kind: WorkloadKind::Volume,
            name: mount.volume.clone(),
        });
        volumes.collect()
    }

    fn predict(_: &MachineSpec, address: Ipv6Addr) -> serde_json::Value {
        serde_json::json!({ "address": address })
    }
}

fn check_text(field: &str, text: &str) -> Result<(), String> {
    if text.contains('\0') { Err(format!("{field}: no zero byte can be in it")) } else { Ok(()) }
}

fn check_path(field: &str, path: &str) -> Result<(), String> {
    check_text(field, path)?;
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(format!("{field}: write an absolute path without '..', not '{path}'"));
    }
    Ok(())
}
