//! What a virtual machine is made of.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use rhizome_model::Code;
use serde::{Deserialize, Serialize};

use super::payload::{check_initramfs, check_kernel};
use crate::error::{Result, SalError, shown};

/// As much of a serial as virtio tells the guest.
const MAX_SERIAL: usize = 20;
const MIN_MEMORY: u64 = 16 << 20;
/// Hypervisors give memory in pages of this size at the largest.
const MEMORY_UNIT: u64 = 2 << 20;
/// What every kernel takes as its command line.
const MAX_CMDLINE: usize = 2047;
/// Each has a slot of the machine's bus.
const MAX_DISKS: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// For people.
    pub name: String,
    /// Told to the guest as its platform's, and asked back from whoever answers on the socket.
    pub uuid: String,
    /// The hypervisor.
    pub program: PathBuf,
    pub driver: Driver,
    pub kernel: PathBuf,
    #[serde(default)]
    pub initramfs: Option<PathBuf>,
    #[serde(default)]
    pub cmdline: String,
    pub vcpus: u32,
    /// Bytes.
    pub memory: u64,
    /// In the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<Disk>,
    #[serde(default)]
    pub net: Option<Net>,
    pub ready: Ready,
    /// It is ready this many milliseconds after it was booted, or has failed.
    pub ready_ms: u64,
    /// Folders from which disks may be added while it runs; its own folder is one anyway.
    #[serde(default)]
    pub disk_folders: Vec<PathBuf>,
    /// Folders of the control groups that the hypervisor is put into before the guest runs.
    #[serde(default)]
    pub groups: Vec<PathBuf>,
}

/// A raw image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub path: PathBuf,
    /// The guest sees it as `/dev/disk/by-id/virtio-SERIAL`.
    pub serial: String,
    #[serde(default)]
    pub readonly: bool,
}

/// A TAP that is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    pub tap: String,
    /// The guest's.
    pub mac: String,
    pub mtu: u16,
}

/// When a start has succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ready", rename_all = "snake_case")]
pub enum Ready {
    /// The guest's processors run.
    Started,
    /// The guest answers an echo request of the node.
    Address { address: Ipv6Addr },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "driver", rename_all = "snake_case")]
pub enum Driver {
    CloudHypervisor,
    Qemu { accel: Accel },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    Kvm,
    /// In software.
    Tcg,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Qemu { .. } => "qemu",
        })
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl VmConfig {
    /// What can be known to fail before anything is started.
    pub fn check(&self) -> Result<()> {
        let refuse = |message: String| Err(SalError::new(Code::InvalidSpec, message));
        if self.vcpus == 0 || self.vcpus > 255 {
            return refuse(format!(
                "a virtual machine has 1 to 255 processors, not {}",
                self.vcpus
            ));
        }
        if self.memory < MIN_MEMORY {
            let least = MIN_MEMORY >> 20;
            return refuse(format!("a virtual machine has at least {least} MiB of memory"));
        }
        if self.cmdline.len() > MAX_CMDLINE || self.cmdline.contains(['\0', '\n']) {
            return refuse(format!("a command line is one line of at most {MAX_CMDLINE} bytes"));
        }
        if self.disks.len() > MAX_DISKS {
            return refuse(format!("a virtual machine has at most {MAX_DISKS} disks"));
        }
        for (n, disk) in self.disks.iter().enumerate() {
            disk.check()?;
            if self.disks[..n].iter().any(|other| other.serial == disk.serial) {
                return refuse(format!("two disks have the serial '{}'", disk.serial));
            }
        }
        check_kernel(&self.kernel)?;
        self.initramfs.as_deref().map_or(Ok(()), check_initramfs)
    }

    /// Bytes, as hypervisors take them.
    pub(super) fn whole_memory(&self) -> u64 {
        self.memory.next_multiple_of(MEMORY_UNIT)
    }
}

impl Disk {
    pub(super) fn check(&self) -> Result<()> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let serial = &self.serial;
        if serial.is_empty() || serial.len() > MAX_SERIAL || !serial.chars().all(is_plain) {
            let message = format!(
                "'{serial}' is no serial of a disk: 1 to {MAX_SERIAL} letters, digits, '-' and '_'"
            );
            return Err(SalError::new(Code::InvalidSpec, message));
        }
        if self.path.exists() {
            return Ok(());
        }
        let message = format!("there is no disk {}", shown(&self.path));
        Err(SalError::new(Code::NotFound, message))
    }
}

/// The same identifier for the same text.
pub fn uuid_of(text: &str) -> String {
    let hash = blake3::derive_key("rhizome-sal v1 uuid of a virtual machine", text.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &std::path::Path) -> VmConfig {
        let kernel = folder.join("kernel");
        std::fs::write(&kernel, super::super::payload::tests::bz_image()).unwrap();
        VmConfig {
            name: "1/demo/vm".into(),
            uuid: uuid_of("1/demo/vm"),
            program: "qemu-system-x86_64".into(),
            driver: Driver::Qemu { accel: Accel::Tcg },
            kernel,
            initramfs: None,
            cmdline: "console=ttyS0".into(),
            vcpus: 1,
            memory: 64 << 20,
            disks: Vec::new(),
            net: None,
            ready: Ready::Started,
            ready_ms: 1000,
            disk_folders: Vec::new(),
            groups: Vec::new(),
        }
    }

    #[test]
    fn what_cannot_run_is_refused_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let good = config(folder.path());
        good.check().unwrap();
        let disk = |serial: &str| Disk {
            path: good.kernel.clone(),
            serial: serial.into(),
            readonly: false,
        };
        let code = |change: &dyn Fn(&mut VmConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.check().unwrap_err().code()
        };
        assert_eq!(code(&|c| c.vcpus = 0), Code::InvalidSpec);
        assert_eq!(code(&|c| c.memory = 1 << 20), Code::InvalidSpec);
        assert_eq!(code(&|c| c.cmdline = "a\nb".into()), Code::InvalidSpec);
        assert_eq!(code(&|c| c.disks = vec![disk("twenty-one-characters")]), Code::InvalidSpec);
        assert_eq!(code(&|c| c.disks = vec![disk("a,readonly=on")]), Code::InvalidSpec);
        assert_eq!(code(&|c| c.disks = vec![disk("a"), disk("a")]), Code::InvalidSpec);
        assert_eq!(code(&|c| c.kernel = "/nowhere".into()), Code::ImageNotFound);
        assert_eq!(code(&|c| c.initramfs = Some(c.kernel.clone())), Code::ImageCorrupt);
        let gone = Disk { path: "/nowhere".into(), ..disk("a") };
        assert_eq!(code(&|c| c.disks = vec![gone.clone()]), Code::NotFound);
    }

    #[test]
    fn a_config_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.ready = Ready::Address { address: "400::1".parse().unwrap() };
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<VmConfig>(&json).unwrap(), config);
        assert!(serde_json::from_str::<VmConfig>(&json.replacen("vcpus", "cpus", 1)).is_err());
    }

    #[test]
    fn a_name_has_one_uuid() {
        assert_eq!(uuid_of("a"), uuid_of("a"));
        assert_ne!(uuid_of("a"), uuid_of("b"));
        assert_eq!(uuid_of("a").len(), 36);
    }
}
