//! What a node is made of, read from /proc and /sys.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use procfs::Current;
use rhizome_model::registrar::{Interface, Resources};
use rhizome_model::{Code, Failure};

/// What a node tells the ledger about its hardware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub resources: Resources,
    pub interfaces: Vec<Interface>,
    pub serial_number: String,
    pub secure_boot: bool,
    pub virtualized: bool,
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
    pub fn gather() -> Result<Self, Failure> {
        let fail = |what: &str, e: &dyn std::fmt::Display| {
            Failure::new(Code::Internal, format!("cannot read {what}: {e}"))
        };
        let memory = procfs::Meminfo::current().map_err(|e| fail("/proc/meminfo", &e))?;
        let cpus = procfs::CpuInfo::current().map_err(|e| fail("/proc/cpuinfo", &e))?;
        let (hru, sru) = disks();
        let resources = Resources { hru, sru, cru: cpus.num_cores() as u64, mru: memory.mem_total };
        let virtualized = cpus.flags(0).is_some_and(|flags| flags.contains(&"hypervisor"));
        Ok(Self {
            resources,
            interfaces: interfaces().map_err(|e| fail("the network interfaces", &e))?,
            serial_number: serial_number().map_err(|e| fail("/etc/machine-id", &e))?,
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

fn disks() -> (u64, u64) {
    let (mut hru, mut sru) = (0, 0);
    for disk in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let name = disk.file_name().to_string_lossy().into_owned();
        if NO_DISK.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let read = |file| trimmed(&disk.path().join(file));
        // In sectors of 512 bytes, whatever the disk's own sectors are.
        let bytes = read("size").and_then(|s| s.parse::<u64>().ok()).unwrap_or(0) * 512;
        if read("queue/rotational").as_deref() == Some("1") {
            hru += bytes;
        } else {
            sru += bytes;
        }
    }
    (hru, sru)
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
        let facts = Facts::gather().unwrap();
        assert!(facts.resources.cru > 0 && facts.resources.mru > 1 << 20, "{facts:?}");
        assert!(!facts.interfaces.is_empty() && !facts.serial_number.is_empty(), "{facts:?}");
        assert_eq!(facts, Facts::gather().unwrap(), "facts must not change by themselves");
        assert!(uptime().unwrap() > 0);
    }
}
