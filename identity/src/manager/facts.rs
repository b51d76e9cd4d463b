//! What a node is made of, read from /proc and /sys.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::str::FromStr;

use procfs::Current;
use rhizome_model::registrar::{Interface, Resources};
use rhizome_model::uptime::BootId;
use rhizome_model::{Code, Failure};
use serde::{Deserialize, Serialize};

/// What a node tells the ledger about its hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Facts {
    pub resources: Resources,
    /// What the processor calls itself.
    #[serde(default)]
    pub processor: String,
    #[serde(default)]
    pub disks: Vec<Disk>,
    pub interfaces: Vec<Interface>,
    pub serial_number: String,
    pub secure_boot: bool,
    pub virtualized: bool,
}

/// A disk, as the kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Disk {
    pub name: String,
    /// None where the kernel knows none, as of a virtual disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    pub bytes: u64,
    pub kind: DiskKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    Hdd,
    Ssd,
}

impl FromStr for DiskKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "hdd" => Ok(Self::Hdd),
            "ssd" => Ok(Self::Ssd),
            _ => Err("write ssd or hdd"),
        }
    }
}

/// Where the farmer knows better than kernel and firmware.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    pub serial_number: Option<String>,
    /// By the disk's serial number, or its name where it has none.
    pub disks: BTreeMap<String, DiskKind>,
}

/// What firmware says when its maker wrote nothing.
const NO_SERIAL: [&str; 6] = [
    "none",
    "not specified",
    "to be filled by o.e.m.",
    "default string",
    "0",
    "system serial number",
];
/// Block devices without a disk of their own behind them.
const NO_DISK: [&str; 7] = ["loop", "ram", "zram", "dm-", "md", "sr", "fd"];

impl Facts {
    /// Reads this machine's facts.
    pub fn gather(overrides: &Overrides) -> Result<Self, Failure> {
        let fail = |what: &str, e: &dyn std::fmt::Display| {
            Failure::new(Code::Internal, format!("cannot read {what}: {e}"))
        };
        let memory = procfs::Meminfo::current().map_err(|e| fail("/proc/meminfo", &e))?;
        let cpus = procfs::CpuInfo::current().map_err(|e| fail("/proc/cpuinfo", &e))?;
        let disks = disks(Path::new("/sys/block"), &overrides.disks);
        let sum = |kind| disks.iter().filter(|d| d.kind == kind).map(|d| d.bytes).sum();
        let (hru, sru) = (sum(DiskKind::Hdd), sum(DiskKind::Ssd));
        let resources = Resources { hru, sru, cru: cpus.num_cores() as u64, mru: memory.mem_total };
        let virtualized = cpus.flags(0).is_some_and(|flags| flags.contains(&"hypervisor"));
        Ok(Self {
            resources,
            processor: cpus.model_name(0).unwrap_or_default().trim().to_owned(),
            disks,
            interfaces: interfaces().map_err(|e| fail("the network interfaces", &e))?,
            serial_number: match &overrides.serial_number {
                Some(known) => known.clone(),
                None => serial_number().map_err(|e| fail("/etc/machine-id", &e))?,
            },
            secure_boot: secure_boot(),
            virtualized,
        })
    }
}

/// Seconds since the kernel started, at least one.
pub fn uptime() -> Result<u64, Failure> {
    let uptime = procfs::Uptime::current()
        .map_err(|e| Failure::new(Code::Internal, format!("cannot read /proc/uptime: {e}")))?;
    Ok((uptime.uptime as u64).max(1))
}

/// The kernel's name of this boot.
pub fn boot_id() -> Result<BootId, Failure> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path)
        .map_err(|e| Failure::new(Code::Internal, format!("cannot read {path}: {e}")))?;
    text.trim().parse().map_err(|e| Failure::new(Code::Internal, format!("{path}: {e}")))
}

fn disks(block: &Path, known: &BTreeMap<String, DiskKind>) -> Vec<Disk> {
    let mut disks = Vec::new();
    for disk in fs::read_dir(block).into_iter().flatten().flatten() {
        let name = disk.file_name().to_string_lossy().into_owned();
        if NO_DISK.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let read = |file| trimmed(&disk.path().join(file)).filter(|text| !text.is_empty());
        // In sectors of 512 bytes, whatever the disk's own sectors are.
        let bytes = read("size").and_then(|s| s.parse::<u64>().ok()).unwrap_or(0) * 512;
        let serial =
            read("device/serial").or_else(|| read("serial")).or_else(|| read("device/wwid"));
        let said = serial.as_ref().and_then(|s| known.get(s)).or_else(|| known.get(&name));
        let spins = || read("queue/rotational").as_deref() == Some("1");
        let kind =
            said.copied().unwrap_or_else(|| if spins() { DiskKind::Hdd } else { DiskKind::Ssd });
        disks.push(Disk { name, serial, bytes, kind });
    }
    // The kernel lists them in no order, and the same facts must look the same.
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}

/// The interfaces to the outside: those with hardware behind them; where there are none, as in a
/// container, those of the default route; the loopback where there is nothing else. Bridges and
/// TAPs of our own machines come and go and are no fact of the node.
fn interfaces() -> nix::Result<Vec<Interface>> {
    let mut ips: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for address in nix::ifaddrs::getifaddrs()? {
        let entry = ips.entry(address.interface_name).or_default();
        if let Some(storage) = address.address {
            if let Some(v4) = storage.as_sockaddr_in() {
                entry.insert(v4.ip().to_string());
            } else if let Some(v6) = storage.as_sockaddr_in6() {
                entry.insert(v6.ip().to_string());
            }
        }
    }
    let physical = |name: &&String| Path::new("/sys/class/net").join(name).join("device").exists();
    let mut chosen: Vec<String> = ips.keys().filter(physical).cloned().collect();
    if chosen.is_empty() {
        let outward = default_route_interfaces();
        chosen = ips.keys().filter(|name| outward.contains(*name)).cloned().collect();
    }
    if chosen.is_empty() {
        chosen.push("lo".into());
    }
    let interface = |name: String| Interface {
        mac: trimmed(&Path::new("/sys/class/net").join(&name).join("address")).unwrap_or_default(),
        ips: ips.remove(&name).unwrap_or_default().into_iter().collect(),
        name,
    };
    Ok(chosen.into_iter().map(interface).collect())
}

fn default_route_interfaces() -> BTreeSet<String> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    // Interface first, then destination; and destination, prefix length, …, interface last.
    let v4 = v4.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then(|| name.to_owned())
    });
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let default =
            fields.len() == 10 && fields[0].bytes().all(|b| b == b'0') && fields[1] == "00";
        (default && fields[9] != "lo").then(|| fields[9].to_owned())
    });
    v4.chain(v6).collect()
}

/// The firmware's serial number; where it has none, the id of the installation.
fn serial_number() -> std::io::Result<String> {
    for file in ["product_serial", "board_serial", "product_uuid"] {
        if let Some(serial) = trimmed(&Path::new("/sys/class/dmi/id").join(file))
            && !serial.is_empty()
            && !NO_SERIAL.contains(&serial.to_ascii_lowercase().as_str())
        {
            return Ok(serial);
        }
    }
    Ok(fs::read_to_string("/etc/machine-id")?.trim().to_owned())
}

/// The last byte of the EFI variable, behind four bytes of attributes.
fn secure_boot() -> bool {
    let variable = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    fs::read(variable).is_ok_and(|bytes| bytes.get(4) == Some(&1))
}

fn trimmed(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts_that_a_ledger_takes() {
        let facts = Facts::gather(&Overrides::default()).unwrap();
        assert!(facts.resources.cru > 0 && facts.resources.mru > 1 << 20, "{facts:?}");
        assert!(!facts.interfaces.is_empty() && !facts.serial_number.is_empty(), "{facts:?}");
        assert_eq!(
            facts,
            Facts::gather(&Overrides::default()).unwrap(),
            "facts must not change by themselves"
        );
        assert!(uptime().unwrap() > 0 && boot_id().is_ok());
    }

    #[test]
    fn disks_are_what_the_kernel_says_unless_the_farmer_knows_better() {
        let dir = tempfile::tempdir().unwrap();
        let disk = |name: &str, rotational: &str, serial: Option<&str>| {
            let disk = dir.path().join(name);
            fs::create_dir_all(disk.join("queue")).unwrap();
            fs::create_dir_all(disk.join("device")).unwrap();
            fs::write(disk.join("size"), "2048\n").unwrap();
            fs::write(disk.join("queue/rotational"), rotational).unwrap();
            if let Some(serial) = serial {
                fs::write(disk.join("device/serial"), serial).unwrap();
            }
        };
        disk("sda", "1\n", Some("  WD-1 \n"));
        disk("sdb", "1\n", Some("USB-2"));
        disk("nvme0n1", "0\n", None);
        disk("loop0", "0\n", None);
        let known = [("USB-2".to_owned(), DiskKind::Ssd), ("nvme0n1".to_owned(), DiskKind::Hdd)];
        let found = disks(dir.path(), &known.into());
        let short: Vec<_> =
            found.iter().map(|d| (d.name.as_str(), d.serial.as_deref(), d.bytes, d.kind)).collect();
        assert_eq!(
            short,
            [
                ("nvme0n1", None, 1 << 20, DiskKind::Hdd),
                ("sda", Some("WD-1"), 1 << 20, DiskKind::Hdd),
                ("sdb", Some("USB-2"), 1 << 20, DiskKind::Ssd),
            ]
        );
    }
}
