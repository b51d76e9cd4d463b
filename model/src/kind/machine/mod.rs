//! `machine`: something that runs.

mod check;
mod vm;

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::vm::{Boot, Disk, Ready};
use super::{Kind, Reference, WorkloadKind};
use crate::{Bytes, Capacity, Cpu, Name};

/// A container or a virtual machine with an address of its own.
pub struct Machine;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Where the root file system comes from: `file:///path` of a tar archive or of a folder. Of a
    /// virtual machine: a raw disk image that its first disk is a copy of; without it there is no
    /// such disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub image: Option<String>,
    /// How it is kept apart from the others.
    #[serde(default)]
    pub isolation: Isolation,
    /// Processors; fractions are allowed. A virtual machine sees the next whole number of them.
    #[serde(default = "default_cpu")]
    pub cpu: Cpu,
    /// Memory, for example "512MiB".
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// The most that the root file system can grow above the image. Of a virtual machine: the size
    /// of its first disk.
    #[serde(default = "default_disk")]
    pub disk: Bytes,
    /// The most processes and threads at a time.
    #[serde(default = "default_pids")]
    pub pids: u32,
    /// The program and its arguments. Without it `/sbin/init` of the image runs.
    #[serde(default = "default_command")]
    pub command: Vec<String>,
    /// Environment variables. A virtual machine finds them in `/etc/environment`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Volumes and where they appear. To a virtual machine a volume is a disk with the volume's name
    /// as its serial number, and no other machine can use the volume at the same time.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// When it is started again after it ended.
    #[serde(default)]
    pub restart: Restart,
    /// The folder that the program starts in.
    #[serde(default = "default_workdir")]
    pub workdir: String,
    /// What a virtual machine boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Boot")]
    pub boot: Option<Boot>,
    /// More disks of a virtual machine. They are the machine's own, and go with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Who may log in to a virtual machine: public keys as in `authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
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
    /// A virtual machine with a kernel of its own.
    Vm,
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
    /// The program that runs it, for example "runc" or "cloud-hypervisor 53.0".
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

impl Kind for Machine {
    type Spec = MachineSpec;
    type Status = MachineStatus;

    const SUMMARY: &'static str =
        "A container or a virtual machine, with its own disk and IPv6 address.";

    fn check(spec: &MachineSpec) -> Result<(), String> {
        check::check(spec)
    }

    fn demand(spec: &MachineSpec) -> Capacity {
        match spec.isolation {
            Isolation::Container => {
                Capacity { cpu: spec.cpu, memory: spec.memory, disk: spec.disk }
            }
            Isolation::Vm => vm::demand(spec),
        }
    }

    /// Limits, the size of the disk and the restart policy change while it runs. A virtual machine
    /// is started again for most of that, and for what it boots; its disks are kept.
    fn fixed(spec: &MachineSpec) -> MachineSpec {
        let keep_size = |disk: &Disk| Disk { size: Bytes::default(), ..disk.clone() };
        MachineSpec {
            cpu: Cpu::default(),
            memory: Bytes::default(),
            disk: Bytes::default(),
            pids: 0,
            restart: Restart::default(),
            boot: None,
            disks: spec.disks.iter().map(keep_size).collect(),
            ..spec.clone()
        }
    }

    fn shrinks(old: &MachineSpec, new: &MachineSpec) -> bool {
        let shrinks = new.disk < old.disk;
        shrinks && old.isolation == Isolation::Container || vm::shrunk_disk(old, new).is_some()
    }

    /// What a container holds is files; a disk of a virtual machine holds what it is large.
    fn fits(old: &MachineSpec, new: &MachineSpec, status: &MachineStatus) -> Result<(), String> {
        if let Some((name, from, to)) = vm::shrunk_disk(old, new) {
            return Err(format!(
                "the machine's disk '{name}' has {from} and cannot shrink to {to}: delete the machine first, with what is on the disk"
            ));
        }
        if old.isolation == Isolation::Container && status.disk_used > new.disk {
            return Err(format!(
                "the machine's disk holds {} and cannot shrink to {}: remove files first",
                status.disk_used, new.disk
            ));
        }
        Ok(())
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
