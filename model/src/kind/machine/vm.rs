//! What only a virtual machine has.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::{check_text, check_url};
use super::{Isolation, MachineSpec};
use crate::{Bytes, Capacity, Name};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// The Linux kernel, `bzImage` or `vmlinux`: `file:///path`.
    pub kernel: String,
    /// Its initramfs: `file:///path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub initramfs: Option<String>,
    /// The kernel's command line, for example "root=/dev/vda1 rw". A console on the serial line,
    /// which is what `rhizome logs` shows, is added where it names none.
    #[serde(default)]
    pub cmdline: String,
    /// When it counts as started.
    #[serde(default)]
    pub ready: Ready,
    /// It is ready within so many seconds, or has failed to start.
    #[serde(default = "default_timeout")]
    pub timeout: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// When the node reaches its address.
    #[default]
    Address,
    /// When the hypervisor has booted it.
    Started,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its serial number: the machine sees it as `/dev/disk/by-id/virtio-NAME`.
    pub name: Name,
    /// For example "10GiB". It can grow, and never shrinks.
    pub size: Bytes,
    /// A raw disk image that it is a copy of: `file:///path`. Without it it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub image: Option<String>,
}

impl Boot {
    pub const MAX_TIMEOUT: u32 = 3600;
}

fn default_timeout() -> u32 {
    120
}

/// What a hypervisor needs for itself, besides the memory of its guest.
const OVERHEAD: Bytes = Bytes::mib(128);
const MIN_MEMORY: Bytes = Bytes::mib(32);
const MAX_DISKS: usize = 16;
const MAX_CMDLINE: usize = 2000;
const MAX_KEYS: usize = 64;
const MAX_KEY: usize = 8 << 10;
/// What a virtio disk has room for.
const MAX_SERIAL: usize = 20;
/// The serial numbers of the first disk, and of the one with what the machine is told.
const RESERVED: [&str; 2] = ["root", "cidata"];

/// The disk that shrinks first: its name, and from what to what.
pub(super) fn shrunk_disk<'a>(
    old: &'a MachineSpec,
    new: &MachineSpec,
) -> Option<(&'a str, Bytes, Bytes)> {
    let after = new.own_disks();
    let same = |name: &str| after.iter().find(|(other, ..)| *other == name).map(|(_, to, _)| *to);
    old.own_disks()
        .into_iter()
        .filter(|_| old.isolation == Isolation::Vm)
        .find_map(|(name, from, _)| same(name).filter(|to| *to < from).map(|to| (name, from, to)))
}

impl MachineSpec {
    /// The disks that a virtual machine has besides volumes, in order: name, size and image.
    pub fn own_disks(&self) -> Vec<(&str, Bytes, Option<&str>)> {
        let first = self.image.as_deref().map(|image| (RESERVED[0], self.disk, Some(image)));
        let more = self.disks.iter().map(|d| (d.name.as_str(), d.size, d.image.as_deref()));
        first.into_iter().chain(more).collect()
    }

    /// The memory that a virtual machine is limited to: its own and its hypervisor's.
    pub fn vm_memory(&self) -> Bytes {
        Bytes(self.memory.0.saturating_add(OVERHEAD.0))
    }

    /// The processors that a virtual machine sees.
    pub fn vcpus(&self) -> u32 {
        self.cpu.millis().div_ceil(1000).max(1)
    }
}

pub(super) fn demand(spec: &MachineSpec) -> Capacity {
    let first = spec.image.iter().map(|_| spec.disk.0);
    let disks = first.chain(spec.disks.iter().map(|disk| disk.size.0));
    Capacity {
        cpu: spec.cpu,
        memory: spec.vm_memory(),
        disk: Bytes(disks.fold(0, u64::saturating_add)),
    }
}

pub(super) fn check(spec: &MachineSpec) -> Result<(), String> {
    if spec.memory < MIN_MEMORY {
        return Err(format!(
            "memory: a virtual machine needs at least {MIN_MEMORY}, not {}",
            spec.memory
        ));
    }
    let Some(boot) = &spec.boot else {
        return Err("boot: a virtual machine needs it: boot: #{ kernel: \"file:///path\" }".into());
    };
    check_boot(boot)?;
    check_disks(spec)?;
    check_env(spec)?;
    if spec.ssh_keys.len() > MAX_KEYS {
        return Err(format!("ssh_keys: at most {MAX_KEYS}"));
    }
    for (i, key) in spec.ssh_keys.iter().enumerate() {
        let is_one_line = key.len() <= MAX_KEY && !key.contains(['\n', '\r', '\0']);
        let is_key = ["ssh-", "ecdsa-", "sk-"].iter().any(|start| key.starts_with(start));
        if !(is_one_line && is_key && key.split_whitespace().count() >= 2) {
            return Err(format!(
                "ssh_keys[{i}]: write a public key, for example 'ssh-ed25519 AAAA… name'"
            ));
        }
    }
    Ok(())
}

fn check_boot(boot: &Boot) -> Result<(), String> {
    check_url("boot.kernel", &boot.kernel)?;
    if let Some(initramfs) = &boot.initramfs {
        check_url("boot.initramfs", initramfs)?;
    }
    check_text("boot.cmdline", &boot.cmdline)?;
    if boot.cmdline.len() > MAX_CMDLINE || boot.cmdline.contains(['\n', '\r']) {
        return Err(format!("boot.cmdline: one line of at most {MAX_CMDLINE} bytes"));
    }
    if boot.timeout == 0 || boot.timeout > Boot::MAX_TIMEOUT {
        return Err(format!(
            "boot.timeout: 1 to {} seconds, not {}",
            Boot::MAX_TIMEOUT,
            boot.timeout
        ));
    }
    Ok(())
}

fn check_disks(spec: &MachineSpec) -> Result<(), String> {
    if spec.disks.len() > MAX_DISKS {
        return Err(format!("disks: at most {MAX_DISKS}"));
    }
    let mut taken = BTreeSet::from(RESERVED);
    let disks = spec.disks.iter().enumerate().map(|(i, d)| (format!("disks[{i}].name"), &d.name));
    let volumes = spec.mounts.iter().enumerate();
    let volumes = volumes.map(|(i, m)| (format!("mounts[{i}].volume"), &m.volume));
    for (field, name) in disks.chain(volumes) {
        if name.as_str().len() > MAX_SERIAL {
            return Err(format!(
                "{field}: the name of a virtual machine's disk has at most {MAX_SERIAL} characters, not '{name}'"
            ));
        }
        if !taken.insert(name.as_str()) {
            return Err(format!("{field}: the machine has a disk '{name}' already"));
        }
    }
    for (i, disk) in spec.disks.iter().enumerate() {
        if disk.size < Bytes::mib(1) {
            return Err(format!("disks[{i}].size: at least 1MiB, not {}", disk.size));
        }
        if let Some(image) = &disk.image {
            check_url(&format!("disks[{i}].image"), image)?;
        }
    }
    Ok(())
}

/// Shells read them.
fn check_env(spec: &MachineSpec) -> Result<(), String> {
    let is_variable = |key: &str| {
        !key.starts_with(|c: char| c.is_ascii_digit())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match spec.env.keys().find(|key| !is_variable(key)) {
        Some(key) => Err(format!(
            "env: '{key}' is no variable of a virtual machine: letters, digits and '_', no digit first"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::kind::Change;
    use crate::{Capacity, WorkloadKind};

    fn vm(more: Value) -> Value {
        let mut spec = json!({ "isolation": "vm", "boot": { "kernel": "file:///k" } });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_fields_name() {
        let key = "ssh-ed25519 AAAA me";
        for (spec, field) in [
            (json!({ "isolation": "vm" }), "boot:"),
            (json!({ "isolation": "container" }), "image:"),
            (json!({ "image": "file:///a", "boot": { "kernel": "file:///k" } }), "boot:"),
            (json!({ "image": "file:///a", "disks": [{ "name": "a", "size": 1 }] }), "disks:"),
            (json!({ "image": "file:///a", "ssh_keys": [key] }), "ssh_keys:"),
            (vm(json!({ "command": ["/bin/true"] })), "command:"),
            (vm(json!({ "workdir": "/tmp" })), "workdir:"),
            (vm(json!({ "pids": 3 })), "pids:"),
            (vm(json!({ "memory": "16MiB" })), "memory:"),
            (vm(json!({ "image": "http://a" })), "image:"),
            (vm(json!({ "boot": { "kernel": "/k" } })), "boot.kernel:"),
            (vm(json!({ "boot": { "kernel": "file:///k", "initramfs": "i" } })), "boot.initramfs:"),
            (vm(json!({ "boot": { "kernel": "file:///k", "cmdline": "a\nb" } })), "boot.cmdline:"),
            (vm(json!({ "boot": { "kernel": "file:///k", "timeout": 0 } })), "boot.timeout:"),
            (vm(json!({ "disks": [{ "name": "root", "size": "1MiB" }] })), "disks[0].name:"),
            (vm(json!({ "disks": [{ "name": "a", "size": 5 }] })), "disks[0].size:"),
            (
                vm(json!({ "disks": [{ "name": "a", "size": "1MiB" }],
                    "mounts": [{ "volume": "a", "path": "/a" }] })),
                "mounts[0].volume:",
            ),
            (
                vm(json!({ "mounts": [{ "volume": "a-name-beyond-20-bytes", "path": "/a" }] })),
                "mounts[0].volume:",
            ),
            (vm(json!({ "ssh_keys": ["rubbish"] })), "ssh_keys[0]:"),
            (vm(json!({ "env": { "A-B": "1" } })), "env:"),
        ] {
            let failure = WorkloadKind::Machine.parse_spec(spec).unwrap_err();
            assert!(failure.message.contains(&format!("machine: {field}")), "{}", failure.message);
        }
    }

    #[test]
    fn a_vm_is_read_back_and_counts_its_hypervisor_and_all_its_disks() {
        let spec =
            vm(json!({ "cpu": 1.5, "memory": "256MiB", "disk": "1GiB", "image": "file:///d",
            "disks": [{ "name": "a", "size": "2GiB" }] }));
        let spec = WorkloadKind::Machine.parse_spec(spec).unwrap();
        assert_eq!(WorkloadKind::Machine.parse_spec(spec.clone()).unwrap(), spec);
        let Capacity { cpu, memory, disk } = WorkloadKind::Machine.demand(&spec).unwrap();
        assert_eq!((cpu.millis(), memory.0 >> 20, disk.0 >> 30), (1500, 384, 3));
        let without = WorkloadKind::Machine.parse_spec(vm(json!({}))).unwrap();
        assert_eq!(WorkloadKind::Machine.demand(&without).unwrap().disk.0, 0);
    }

    #[test]
    fn a_vm_keeps_its_disks_where_only_sizes_and_what_it_boots_change() {
        let parse = |more| WorkloadKind::Machine.parse_spec(vm(more)).unwrap();
        let disk = |size: u64| json!([{ "name": "a", "size": size << 20 }]);
        let old = parse(json!({ "disks": disk(8) }));
        for (new, is_kept) in [
            (json!({ "disks": disk(16) }), true),
            (json!({ "disks": disk(8), "memory": "1GiB", "cpu": 2 }), true),
            (json!({ "disks": disk(8), "boot": { "kernel": "file:///l" } }), true),
            (json!({ "disks": [] }), false),
            (json!({ "disks": disk(8), "env": { "A": "b" } }), false),
            (json!({ "disks": disk(8), "image": "file:///d" }), false),
        ] {
            let change = WorkloadKind::Machine.change(&old, &parse(new)).unwrap();
            assert_eq!(matches!(change, Change::Update(_)), is_kept, "{change:?}");
        }
    }
}
